// Vector operations of AVX-512 F/BW/VL/DQ, for both AVX-512 paths. Included inside an unnamed namespace.
struct Ops {
  using V = __m512;
  static constexpr int kRowsDecoding = 8;
  static constexpr int kRowsBlocked = 6;  // 24 sums, 4 weights, activations broadcast from memory: 28 of 32 registers
  static constexpr int kTilesBlocked = 4;
  static constexpr float kFp8Factor = 256.0f;  // decode_fp8 gives value / 256
  static constexpr int tiles_at_once(int num_rows) { return num_rows <= 4 ? 4 : 2; }
  static constexpr int kPrefetchBytes = 4096;  // ahead of a stream: a page, where hardware prefetchers stop

  static V broadcast(float value) { return _mm512_set1_ps(value); }
  static V zero() { return _mm512_setzero_ps(); }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V load_bf16(const uint16_t* p) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
  }
  static V load_e8m0(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);
    return _mm512_castsi512_ps(_mm512_max_epu32(bits, _mm512_set1_epi32(0x00400000)));  // byte 0 is 2^-127
  }
  static void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
  static void prefetch_stream(const uint8_t* p) {
    const char* ahead = reinterpret_cast<const char*>(p) + kPrefetchBytes;
    for (int line = 0; line < kTilesPerPanel; ++line) _mm_prefetch(ahead + line * kChunkBytes, _MM_HINT_T0);
  }

  static __m512i load_chunk(const uint8_t* chunk) { return _mm512_loadu_si512(chunk); }
  static void decode_bf16(const uint8_t* chunk, V* out) {
    const __m512i pairs = load_chunk(chunk);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000))));
  }
  // Words of 4 rows | 4 rows (columns k | k + 2), four times, to 16 rows | 16 rows.
  static __m512i by_column(__m512i words) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), words);
  }
  // As in isa_avx2.cpp: the byte becomes the fp16 number value / 256, subnormals included.
  static void fp8_columns(__m512i high_bytes, V& first, V& second) {
    const __m512i halves = _mm512_and_si512(_mm512_srai_epi16(high_bytes, 1), _mm512_set1_epi16(short(0xbf80)));
    const __m512i ordered = by_column(halves);
    first = _mm512_cvtph_ps(_mm512_castsi512_si256(ordered));
    second = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(ordered, 1));
  }
  static void decode_fp8(const uint8_t* chunk, V* out) {
    const __m512i bytes = load_chunk(chunk);
    fp8_columns(_mm512_slli_epi16(bytes, 8), out[0], out[2]);
    fp8_columns(bytes, out[1], out[3]);
  }
  static void int8_columns(__m512i high_bytes, V& first, V& second) {
    const __m512i ordered = by_column(_mm512_srai_epi16(high_bytes, 8));
    first = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(ordered)));
    second = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(ordered, 1)));
  }
  static void decode_integers(__m512i bytes, V* out) {
    int8_columns(_mm512_slli_epi16(bytes, 8), out[0], out[2]);
    int8_columns(bytes, out[1], out[3]);
  }
  static void decode_int8(const uint8_t* chunk, V* out) { decode_integers(load_chunk(chunk), out); }
  template <bool kIsE2m1>
  static void decode_nibbles(const uint8_t* chunk, V* out) {
    const __m128i values = kIsE2m1 ? _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
                                   : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const __m512i table = _mm512_broadcast_i32x4(values), mask = _mm512_set1_epi8(15), bytes = load_chunk(chunk);
    decode_integers(_mm512_shuffle_epi8(table, _mm512_and_si512(bytes, mask)), out);
    decode_integers(_mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask)), out + 4);
  }
};
