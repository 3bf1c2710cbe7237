// How codes become numbers, for the loops of panel.inl and tiles.inl. Included once by each isa_*.cpp, inside an unnamed
// namespace as they are, after its `Ops`.

// fp32 activations, one column a step.
struct F32Engine {
  using Weight = Ops::V;
  using X = float;
  static constexpr int kColumnsPerStep = 1;
  static constexpr float kFp8Factor = Ops::kFp8Factor;
  static Ops::V multiply_add(Ops::V sum, Weight w, const X* x) { return Ops::fma(w, Ops::broadcast(*x), sum); }
  static Weight load(const uint8_t* p) { return Ops::load(reinterpret_cast<const float*>(p)); }
  static void store(uint8_t* p, Weight w) { Ops::store(reinterpret_cast<float*>(p), w); }
  template <Format F>
  static void decode(const uint8_t* chunk, Weight* out) {
    if constexpr (F == Format::kF32) out[0] = load(chunk);
    if constexpr (F == Format::kBf16) Ops::decode_bf16(chunk, out);
    if constexpr (F == Format::kFp8Block) Ops::decode_fp8(chunk, out);
    if constexpr (F == Format::kInt8G128) Ops::decode_int8(chunk, out);
    if constexpr (F == Format::kInt4G32 || F == Format::kInt4G128) Ops::template decode_nibbles<false>(chunk, out);
    if constexpr (F == Format::kMxfp4) Ops::template decode_nibbles<true>(chunk, out);
  }
};

// What a decoded code must still be multiplied with, beside its scale. Codes of e2m1 are decoded as twice their value,
// which is an integer.
template <class E, Format F>
constexpr float code_factor() {
  return F == Format::kFp8Block ? E::kFp8Factor : F == Format::kMxfp4 ? 0.5f : 1.0f;
}

template <class E, Format F>
struct Shape {
  static constexpr int kChunkColumns = columns_per_chunk(codes_of(F));
  static constexpr int kSteps = kChunkColumns / E::kColumnsPerStep;  // vectors that a chunk decodes into
  static constexpr int kGroupChunks = group_columns(F) / kChunkColumns;
  static constexpr int kGroupSteps = group_columns(F) / E::kColumnsPerStep;
  static constexpr int kStepBytes = kTilesPerPanel * kChunkBytes;  // one chunk, or one decoded step, of a panel
};

// The scales of tile `tile` in group `group`, for its 16 rows.
template <class E, Format F>
inline Ops::V load_scale(const uint8_t* scales, int64_t group, int tile) {
  constexpr float factor = code_factor<E, F>();
  if constexpr (scales_of(F) == Scales::kF32Block) {
    return Ops::broadcast(reinterpret_cast<const float*>(scales)[group] * factor);
  } else {
    const int64_t first = group * kPanelRows + tile * kTileRows;
    const Ops::V scale = scales_of(F) == Scales::kBf16Row
                             ? Ops::load_bf16(reinterpret_cast<const uint16_t*>(scales) + first)
                             : Ops::load_e8m0(scales + first);
    return factor == 1.0f ? scale : Ops::mul(scale, Ops::broadcast(factor));
  }
}

template <class E, Format F>
inline Ops::V fold(Ops::V sum, Ops::V group_sum, const uint8_t* scales, int64_t group, int tile) {
  if constexpr (scales_of(F) == Scales::kNone) return Ops::add(sum, group_sum);
  return Ops::fma(group_sum, load_scale<E, F>(scales, group, tile), sum);
}
