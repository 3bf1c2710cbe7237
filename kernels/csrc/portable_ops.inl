// Vector operations in C++ without intrinsics. Included inside an unnamed namespace.
struct Ops {
  struct V {
    float lane[kTileRows];
  };
  static constexpr int kRowsDecoding = 2;
  static constexpr int kRowsBlocked = 2;
  static constexpr int kTilesBlocked = 1;
  static constexpr float kFp8Factor = 256.0f;
  static constexpr int tiles_at_once(int) { return 1; }

  static V broadcast(float value) {
    V v;
    for (float& lane : v.lane) lane = value;
    return v;
  }
  static V zero() { return broadcast(0.0f); }
  static V load(const float* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
  static V fma(V a, V b, V c) {
    for (int i = 0; i < kTileRows; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }
  static V add(V a, V b) {
    for (int i = 0; i < kTileRows; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static V mul(V a, V b) {
    for (int i = 0; i < kTileRows; ++i) a.lane[i] *= b.lane[i];
    return a;
  }
  static float of_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
  static V load_bf16(const uint16_t* p) {
    V v;
    for (int i = 0; i < kTileRows; ++i) v.lane[i] = of_bits(uint32_t{p[i]} << 16);
    return v;
  }
  static V load_e8m0(const uint8_t* p) {
    V v;  // byte 0 is 2^-127, a subnormal
    for (int i = 0; i < kTileRows; ++i) v.lane[i] = of_bits(p[i] ? uint32_t{p[i]} << 23 : 0x00400000u);
    return v;
  }
  static void prefetch(const uint8_t*) {}
  static void prefetch_stream(const uint8_t*) {}

  static void decode_bf16(const uint8_t* chunk, V* out) {
    for (int i = 0; i < kTileRows; ++i) {
      uint32_t pair;
      __builtin_memcpy(&pair, chunk + 4 * i, 4);
      out[0].lane[i] = of_bits(pair << 16);
      out[1].lane[i] = of_bits(pair & 0xffff0000u);
    }
  }
  // value / 256: what the F16C path has too. Normal codes by their bits; subnormal ones (exponent 0) are mantissa * 2^-9.
  static float fp8_of(uint32_t code) {
    const uint32_t magnitude = code & 0x7f;
    const float normal = of_bits((magnitude << 20) + (112u << 23));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-17f;
    const float value = magnitude < 8 ? subnormal : normal;
    return code & 0x80 ? -value : value;
  }
  static void decode_fp8(const uint8_t* chunk, V* out) {
    for (int k = 0; k < 4; ++k)
      for (int i = 0; i < kTileRows; ++i) out[k].lane[i] = fp8_of(chunk[byte_in_chunk(i, k)]);
  }
  static void decode_int8(const uint8_t* chunk, V* out) {
    for (int k = 0; k < 4; ++k)
      for (int i = 0; i < kTileRows; ++i)
        out[k].lane[i] = static_cast<float>(static_cast<int8_t>(chunk[byte_in_chunk(i, k)]));
  }
  template <bool kIsE2m1>
  static float nibble_of(int code) {
    constexpr int8_t kTwiceE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return static_cast<float>(kIsE2m1 ? kTwiceE2m1[code] : code - (code & 8) * 2);
  }
  template <bool kIsE2m1>
  static void decode_nibbles(const uint8_t* chunk, V* out) {
    for (int k = 0; k < 8; ++k)
      for (int i = 0; i < kTileRows; ++i)
        out[k].lane[i] = nibble_of<kIsE2m1>(chunk[byte_in_chunk(i, k)] >> (k / 4 * 4) & 15);
  }
};
