// AVX2 + FMA + F16C: ordinary computers since 2013. fp32 arithmetic; bf16 has no instructions here.
#include <immintrin.h>

#include "kernel_set.h"

namespace shoal {
namespace {

struct Ops {
  struct V {
    __m256 low, high;  // rows 0..7 and 8..15 of a tile
  };
  static constexpr int kRowsDecoding = 4;
  static constexpr int kRowsBlocked = 6;  // 12 sums of 8, 2 weights, 1 activation: 15 of 16 registers
  static constexpr int kTilesBlocked = 1;
  static constexpr float kFp8Factor = 256.0f;  // decode_fp8 gives value / 256
  static constexpr int tiles_at_once(int num_rows) { return num_rows == 1 ? 4 : num_rows == 2 ? 2 : 1; }

  static V broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, V v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)}; }
  static V add(V a, V b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static V mul(V a, V b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }

  static __m256 widen_bf16(const uint16_t* p) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
  static V load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
  static __m256 widen_e8m0(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23);
    return _mm256_castsi256_ps(_mm256_max_epu32(bits, _mm256_set1_epi32(0x00400000)));  // byte 0 is 2^-127
  }
  static V load_e8m0(const uint8_t* p) { return {widen_e8m0(p), widen_e8m0(p + 8)}; }
  static void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
  static void prefetch_stream(const uint8_t*) {}

  static __m256i load_half(const uint8_t* chunk, int half) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(chunk + 32 * half));
  }
  static void decode_bf16(const uint8_t* chunk, V* out) {
    const __m256i low = load_half(chunk, 0), high = load_half(chunk, 1), odd = _mm256_set1_epi32(int(0xffff0000));
    out[0] = {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
    out[1] = {_mm256_castsi256_ps(_mm256_and_si256(low, odd)), _mm256_castsi256_ps(_mm256_and_si256(high, odd))};
  }
  // Words of rows 0..3 | 0..3, 4..7 | 4..7 (columns k | k + 2) to rows 0..7 | 0..7.
  static __m256i by_column(__m256i words) { return _mm256_permute4x64_epi64(words, 0b11011000); }

  // A byte in the high half of a word, shifted right by one with its sign kept, is the fp16 number value / 256, and
  // subnormals stay exact: e4m3 has 7 as its exponent's bias, fp16 has 15, and 2^(7 - 15) = 1/256.
  static void fp8_columns(__m256i high_bytes, __m256& first, __m256& second) {
    const __m256i halves = _mm256_and_si256(_mm256_srai_epi16(high_bytes, 1), _mm256_set1_epi16(short(0xbf80)));
    const __m256i ordered = by_column(halves);
    first = _mm256_cvtph_ps(_mm256_castsi256_si128(ordered));
    second = _mm256_cvtph_ps(_mm256_extracti128_si256(ordered, 1));
  }
  static void decode_fp8(const uint8_t* chunk, V* out) {
    const __m256i low = load_half(chunk, 0), high = load_half(chunk, 1);
    fp8_columns(_mm256_slli_epi16(low, 8), out[0].low, out[2].low);
    fp8_columns(_mm256_slli_epi16(high, 8), out[0].high, out[2].high);
    fp8_columns(low, out[1].low, out[3].low);  // the other byte is masked away
    fp8_columns(high, out[1].high, out[3].high);
  }
  static void int8_columns(__m256i high_bytes, __m256& first, __m256& second) {
    const __m256i ordered = by_column(_mm256_srai_epi16(high_bytes, 8));
    first = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(ordered)));
    second = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(ordered, 1)));
  }
  static void decode_integers(__m256i low, __m256i high, V* out) {
    int8_columns(_mm256_slli_epi16(low, 8), out[0].low, out[2].low);
    int8_columns(_mm256_slli_epi16(high, 8), out[0].high, out[2].high);
    int8_columns(low, out[1].low, out[3].low);
    int8_columns(high, out[1].high, out[3].high);
  }
  static void decode_int8(const uint8_t* chunk, V* out) { decode_integers(load_half(chunk, 0), load_half(chunk, 1), out); }
  template <bool kIsE2m1>
  static void decode_nibbles(const uint8_t* chunk, V* out) {
    const __m128i values = kIsE2m1 ? _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
                                   : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const __m256i table = _mm256_broadcastsi128_si256(values), mask = _mm256_set1_epi8(15);
    const __m256i low = load_half(chunk, 0), high = load_half(chunk, 1);
    decode_integers(_mm256_shuffle_epi8(table, _mm256_and_si256(low, mask)),
                    _mm256_shuffle_epi8(table, _mm256_and_si256(high, mask)), out);
    decode_integers(_mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(low, 4), mask)),
                    _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(high, 4), mask)), out + 4);
  }
};

#include "engine.inl"
#include "panel.inl"

}  // namespace

const KernelSet& avx2_kernels() {
  static const KernelSet set = make_kernels();
  return set;
}

}  // namespace shoal
