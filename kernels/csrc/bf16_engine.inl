// Codes to bf16 with AVX-512 VBMI, for vdpbf16ps and for tiles. Included inside an unnamed namespace after engine.inl.
//
// Every code of every format but f32 is a bf16 number exactly (e4m3: 4 significant bits; int8: 8; int4 and e2m1: 4 and
// 2), so weights are decoded to bf16 without scale and the scale multiplies the sum of a group: nothing is rounded.

// bf16 of the non-negative numbers that a 7-bit index means, as high and low bytes.
struct ByteTable {
  alignas(64) uint8_t high[128];
  alignas(64) uint8_t low[128];
};

constexpr uint16_t bf16_of_integer(int value) {
  if (value == 0) return 0;
  int exponent = 0;
  while (value >> (exponent + 1)) ++exponent;
  const int mantissa = (value << 7 >> exponent) & 0x7f;
  return static_cast<uint16_t>((exponent + 127) << 7 | mantissa);
}

constexpr uint16_t bf16_of_e4m3(int code) {
  if (code >= 8) return static_cast<uint16_t>((code << 4) + (120 << 7));
  const uint16_t integer = bf16_of_integer(code);  // subnormal: code * 2^-9
  return static_cast<uint16_t>(integer ? integer - (9 << 7) : 0);
}

template <class Function>
constexpr ByteTable make_table(Function bf16_of_index) {
  ByteTable table{};
  for (int i = 0; i < 128; ++i) {
    table.high[i] = static_cast<uint8_t>(bf16_of_index(i) >> 8);
    table.low[i] = static_cast<uint8_t>(bf16_of_index(i) & 0xff);
  }
  return table;
}

constexpr ByteTable kE4m3Table = make_table(bf16_of_e4m3);
constexpr ByteTable kIntegerTable = make_table(bf16_of_integer);

struct NibbleTable {
  alignas(16) uint8_t high[16];
  alignas(16) uint8_t low[16];
};

constexpr NibbleTable make_nibble_table(const int (&values)[16]) {
  NibbleTable table{};
  for (int i = 0; i < 16; ++i) {
    const int bits = bf16_of_integer(values[i] < 0 ? -values[i] : values[i]) | (values[i] < 0 ? 0x8000 : 0);
    table.high[i] = static_cast<uint8_t>(bits >> 8);
    table.low[i] = static_cast<uint8_t>(bits & 0xff);
  }
  return table;
}

constexpr NibbleTable kInt4Table = make_nibble_table({0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1});
constexpr NibbleTable kTwiceE2m1Table = make_nibble_table({0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12});

// bf16 activations, two columns a step.
struct Bf16Engine {
  using Weight = __m512i;
  typedef uint32_t __attribute__((may_alias)) X;  // two bf16
  static constexpr int kColumnsPerStep = 2;
  static constexpr float kFp8Factor = 1.0f;
  static __m512 multiply_add(__m512 sum, Weight w, const X* x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(_mm512_set1_epi32(int(*x))));
  }
  static Weight load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint8_t* p, Weight w) { _mm512_storeu_si512(p, w); }

  // Pairs times the scales of their rows, for products that are bf16 numbers themselves: nothing is rounded.
  static Weight dequantized(Weight pairs, __m512 scales) {
    const __m512i odd_columns = _mm512_set1_epi32(int(0xffff0000));
    const __m512 even = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), scales);
    const __m512 odd = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(pairs, odd_columns)), scales);
    return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd));
  }

  static void interleave(__m512i high, __m512i low, Weight* out) {
    out[0] = _mm512_unpacklo_epi8(low, high);
    out[1] = _mm512_unpackhi_epi8(low, high);
  }
  static __m512i look_up(const uint8_t* table, __m512i index) {  // by the low 7 bits of each byte
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  }
  static void decode_bytes(const ByteTable& table, __m512i index, __m512i signs, Weight* out) {
    const __m512i sign_bit = _mm512_set1_epi8(char(0x80));
    // 0xf8: a | (b & c)
    const __m512i high = _mm512_ternarylogic_epi64(look_up(table.high, index), signs, sign_bit, 0xf8);
    interleave(high, look_up(table.low, index), out);
  }
  // -128 has the magnitude 128, which no 7-bit index means: packing refuses it.
  static void decode_int8(__m512i bytes, Weight* out) { decode_bytes(kIntegerTable, _mm512_abs_epi8(bytes), bytes, out); }
  static void decode_nibbles(const NibbleTable& table, __m512i index, Weight* out) {
    const __m512i high = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table.high)));
    const __m512i low = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table.low)));
    interleave(_mm512_shuffle_epi8(high, index), _mm512_shuffle_epi8(low, index), out);
  }
  template <Format F>
  static void decode(const uint8_t* chunk, Weight* out) {
    const __m512i bytes = load(chunk);
    if constexpr (F == Format::kBf16) out[0] = bytes;
    if constexpr (F == Format::kFp8Block) decode_bytes(kE4m3Table, bytes, bytes, out);
    if constexpr (F == Format::kInt8G128) decode_int8(bytes, out);
    if constexpr (codes_of(F) == Codes::kNibble) {
      const NibbleTable& table = F == Format::kMxfp4 ? kTwiceE2m1Table : kInt4Table;
      const __m512i mask = _mm512_set1_epi8(15);
      decode_nibbles(table, _mm512_and_si512(bytes, mask), out);
      decode_nibbles(table, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask), out + 2);
    }
  }
};
