// Tile registers in plain C++ with the arithmetic of AMX, so that tiles.inl is tested where no processor has them. Never
// chosen by itself. Included inside an unnamed namespace.
//
// tdpbf16ps as Intel's manual has it (SDM volume 2, TDPBF16PS): for each output the even and the odd columns are summed
// each in their own chain of fp32 FMAs from zero, then even + odd is added to the tile. Every step rounds to nearest even;
// subnormal operands count as zero and subnormal results become zero. A product of two bf16 numbers is exact in fp32, so
// multiplying and adding is the same as a fused operation unless the product leaves fp32's range.
struct Tiles {
  Tiles(int activation_rows) : activation_rows_(activation_rows) {}

  template <int T>
  void zero() {
    __builtin_memset(tiles_[T], 0, sizeof tiles_[T]);
  }
  template <int T>
  void load(const void* from, int64_t stride_bytes) {
    for (int row = 0; row < rows<T>(); ++row) {
      __builtin_memcpy(tiles_[T][row], static_cast<const uint8_t*>(from) + row * stride_bytes, kTileRowBytes);
    }
  }
  template <int T>
  void store(void* to, int64_t stride_bytes) {
    for (int row = 0; row < rows<T>(); ++row) {
      __builtin_memcpy(static_cast<uint8_t*>(to) + row * stride_bytes, tiles_[T][row], kTileRowBytes);
    }
  }
  template <int C, int A, int B>
  void multiply_add() {
    for (int row = 0; row < rows<C>(); ++row) add_products(tiles_[A][row], tiles_[B], tiles_[C][row]);
  }

 private:
  static constexpr int kLanes = kTileRowBytes / 4;

  template <int T>
  int rows() const {
    return T < kFirstWeightTile ? activation_rows_ : kTileRows;
  }
  static float of(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return flushed(value);
  }
  static float flushed(float value) { return __builtin_fabsf(value) < 0x1p-126f ? __builtin_copysignf(0.0f, value) : value; }

  static void add_products(const uint32_t (&activations)[kLanes], const uint32_t (&weights)[kTileRows][kLanes],
                           uint32_t (&sums)[kLanes]) {
    float even[kLanes] = {}, odd[kLanes] = {};
    for (int pair = 0; pair < kTileRows; ++pair) {
      const float even_x = of(activations[pair] << 16), odd_x = of(activations[pair] & 0xffff0000u);
      for (int lane = 0; lane < kLanes; ++lane) {
        even[lane] = flushed(even[lane] + even_x * of(weights[pair][lane] << 16));
        odd[lane] = flushed(odd[lane] + odd_x * of(weights[pair][lane] & 0xffff0000u));
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const float sum = flushed(of(sums[lane]) + flushed(even[lane] + odd[lane]));
      __builtin_memcpy(&sums[lane], &sum, 4);
    }
  }

  int activation_rows_;
  uint32_t tiles_[kNumTiles][kTileRows][kLanes] = {};
};
