// The tile registers of a processor with AMX, as tiles.inl wants them. Included inside an unnamed namespace.
//
// Assembly instead of intrinsics: those of gcc 12 do not say that they touch memory, so a compiler may move the stores of a
// decoded weight behind the load of its tile. Registers keep what they hold until release(); a thread that holds tiles
// costs the system 8 KiB a context switch, so kernels release them before they return.
struct Tiles {
  Tiles(int activation_rows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < kNumTiles; ++tile) {
      config.row_bytes[tile] = kTileRowBytes;
      config.rows[tile] = static_cast<uint8_t>(tile < kFirstWeightTile ? activation_rows : kTileRows);
    }
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  ~Tiles() { asm volatile("tilerelease" ::: "memory"); }

  template <int T>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  void load(const void* from, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(T) : "memory");
  }
  template <int T>
  void store(void* to, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(T) : "memory");
  }
  // Tile C += tile A [rows, 32 bf16] times tile B [16 pairs of columns, 16 outputs].
  template <int C, int A, int B>
  void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};
