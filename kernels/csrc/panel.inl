// The loops that every instruction set shares, as templates over its vector operations. Included once by each isa_*.cpp,
// inside an unnamed namespace: an inline function compiled for AVX-512 must never be merged with the portable one by the
// linker, which is also why nothing from the standard library's templates is used here.
//
// The including file defines `Ops` (vectors of 16 floats, decoders) and the tuning constants it needs.

// ---------------------------------------------------------------------------------------------------- bf16 and SwiGLU

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

// Nearest, ties to even; NaN stays NaN.
inline uint32_t bf16_of(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return (bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
}

inline float round_to_bf16(float value) { return float_of(bf16_of(value) << 16); }

// e^x with a relative error of 1e-7, in operations that compilers vectorize. Cephes' expf: n = round(x / ln 2), ln 2 in two parts
// so that x - n ln 2 is exact, a polynomial of degree 6, the exponent put in by bits.
inline float exp_vectorizable(float x) {
  constexpr float kLowest = -87.0f, kHighest = 88.0f;
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold
  x = x < kLowest ? kLowest : x;
  x = x > kHighest ? kHighest : x;
  const float shifted = x * kLog2E + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float value = p * (r * r) + r + 1.0f;
  return float_of(bits_of(value) + (bits_of(shifted) << 23));
}

// kernels/activation.py. The comparisons keep NaN, which no clamp may hide.
inline float activate(float gate, float up, Activation activation) {
  gate = gate > activation.limit ? activation.limit : gate;
  up = up > activation.limit ? activation.limit : up;
  up = up < -activation.limit ? -activation.limit : up;
  return gate / (1.0f + exp_vectorizable(-activation.alpha * gate)) * (up + activation.up_offset);
}

void swiglu_f32(const float* __restrict gate, const float* __restrict up, int64_t n, Activation activation,
                bool is_rounded, float* __restrict h) {
  if (is_rounded) {
    for (int64_t i = 0; i < n; ++i) {
      h[i] = round_to_bf16(activate(round_to_bf16(gate[i]), round_to_bf16(up[i]), activation));
    }
  } else {
    for (int64_t i = 0; i < n; ++i) h[i] = activate(gate[i], up[i], activation);
  }
}

void swiglu_bf16(const float* __restrict gate, const float* __restrict up, int64_t n, Activation activation,
                 uint16_t* __restrict h) {
  for (int64_t i = 0; i < n; ++i) {
    h[i] = static_cast<uint16_t>(bf16_of(activate(round_to_bf16(gate[i]), round_to_bf16(up[i]), activation)));
  }
}

void round_values(const float* __restrict values, int64_t n, uint16_t* __restrict rounded) {
  for (int64_t i = 0; i < n; ++i) rounded[i] = static_cast<uint16_t>(bf16_of(values[i]));
}

void add(float* __restrict sum, const float* __restrict bias, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += bias[i];
}

void accumulate(float* __restrict y, const float* __restrict term, float weight, int64_t n, bool is_rounded) {
  if (is_rounded) {
    for (int64_t i = 0; i < n; ++i) y[i] += round_to_bf16(weight * term[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] += weight * term[i];
  }
}

// -------------------------------------------------------------------------------------- few rows: decode in registers

// One chunk of N tiles times M rows. Many rows share a broadcast among the tiles, for which all of their weights must fit
// into registers; few rows take tile after tile, and the broadcast is part of the multiplication.
template <class E, Format F, int M, int N>
inline void add_chunk(const uint8_t* from, const typename E::X* const* x, int64_t step, Ops::V (&sum)[M][N]) {
  using S = Shape<E, F>;
  if constexpr (M > 4 && N * S::kSteps <= 8) {
    typename E::Weight w[N][S::kSteps];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) E::template decode<F>(from + n * kChunkBytes, w[n]);
#pragma GCC unroll 8
    for (int s = 0; s < S::kSteps; ++s)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[m][n] = E::multiply_add(sum[m][n], w[n][s], x[m] + step + s);
  } else {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      typename E::Weight w[S::kSteps];
      E::template decode<F>(from + n * kChunkBytes, w);
#pragma GCC unroll 8
      for (int s = 0; s < S::kSteps; ++s)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sum[m][n] = E::multiply_add(sum[m][n], w[s], x[m] + step + s);
    }
  }
}

// Sums of one group of columns for M rows and N tiles from `tile`, decoding on the way.
template <class E, Format F, int M, int N>
inline void sum_group_decoding(const uint8_t* codes, const typename E::X* const* x, int64_t step, int tile,
                               Ops::V (&sum)[M][N]) {
  using S = Shape<E, F>;
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = Ops::zero();
  for (int chunk = 0; chunk < S::kGroupChunks; ++chunk) {
    add_chunk<E, F, M, N>(codes + chunk * S::kStepBytes + tile * kChunkBytes, x, step + chunk * S::kSteps, sum);
    if (tile == 0) Ops::prefetch_stream(codes + chunk * S::kStepBytes);
  }
}

template <class E, Format F, int M>
void few_rows(const PanelArgs& a) {
  using S = Shape<E, F>;
  constexpr int N = Ops::tiles_at_once(M);
  const typename E::X* x[M];
  for (int m = 0; m < M; ++m) x[m] = static_cast<const typename E::X*>(a.rows[m]);
  Ops::V sum[M][kTilesPerPanel];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < kTilesPerPanel; ++n) sum[m][n] = Ops::zero();
  const int64_t num_groups = a.columns / group_columns(F);
  for (int64_t group = 0; group < num_groups; ++group) {
    const uint8_t* codes = a.codes + group * S::kGroupChunks * S::kStepBytes;
#pragma GCC unroll 4
    for (int tile = 0; tile < kTilesPerPanel; tile += N) {
      Ops::V part[M][N];
      sum_group_decoding<E, F, M, N>(codes, x, group * S::kGroupSteps, tile, part);
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sum[m][tile + n] = fold<E, F>(sum[m][tile + n], part[m][n], a.scales, group, tile + n);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < kTilesPerPanel; ++n) Ops::store(a.out + m * kPanelRows + n * kTileRows, sum[m][n]);
}

// ------------------------------------------------------------- more rows: decode a piece once, keep it in L1/L2, reuse

template <class E, Format F>
void decode_piece(const uint8_t* codes, int64_t columns, uint8_t* to) {
  using S = Shape<E, F>;
  for (int64_t chunk = 0; chunk < columns / S::kChunkColumns; ++chunk) {
    for (int tile = 0; tile < kTilesPerPanel; ++tile) {
      typename E::Weight w[S::kSteps];
      E::template decode<F>(codes + chunk * S::kStepBytes + tile * kChunkBytes, w);
      for (int s = 0; s < S::kSteps; ++s)
        E::store(to + (chunk * S::kSteps + s) * S::kStepBytes + tile * kChunkBytes, w[s]);
    }
  }
}

// Walks through the codes of the next piece while this one is multiplied, so that memory is never idle.
struct Prefetcher {
  const uint8_t* next;
  const uint8_t* end;
  void step() {
    if (next < end) {
      Ops::prefetch(next);
      next += kChunkBytes;
    }
  }
};

template <class E, Format F, int M, int N>
inline void multiply_group(const uint8_t* piece, const uint8_t* scales, int64_t group, int tile,
                           const typename E::X* const* x, int64_t step, bool is_first, float* out, Prefetcher& ahead) {
  using S = Shape<E, F>;
  Ops::V sum[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = Ops::zero();
  const uint8_t* next = ahead.next;
  const int64_t prefetch_bytes = next + S::kGroupSteps * kChunkBytes <= ahead.end ? kChunkBytes : 0;
  for (int s = 0; s < S::kGroupSteps; ++s) {
    typename E::Weight w[N];
    for (int n = 0; n < N; ++n) w[n] = E::load(piece + s * S::kStepBytes + (tile + n) * kChunkBytes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] = E::multiply_add(sum[m][n], w[n], x[m] + step + s);
    Ops::prefetch(next);
    next += prefetch_bytes;
  }
  ahead.next = next;
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      float* to = out + m * kPanelRows + (tile + n) * kTileRows;
      const Ops::V before = is_first ? Ops::zero() : Ops::load(to);
      Ops::store(to, fold<E, F>(before, sum[m][n], scales, group, tile + n));
    }
  }
}

template <class E, Format F, int M>
void multiply_piece(const PanelArgs& a, const uint8_t* piece, int64_t column, int64_t columns, int64_t row,
                    Prefetcher& ahead) {
  using S = Shape<E, F>;
  constexpr int N = Ops::kTilesBlocked;
  const typename E::X* x[M];
  for (int m = 0; m < M; ++m) x[m] = static_cast<const typename E::X*>(a.rows[row + m]);
  for (int64_t g = 0; g < columns / group_columns(F); ++g) {
    const int64_t group = column / group_columns(F) + g;
    for (int tile = 0; tile < kTilesPerPanel; tile += N) {
      multiply_group<E, F, M, N>(piece + g * S::kGroupSteps * S::kStepBytes, a.scales, group, tile, x,
                                 group * S::kGroupSteps, group == 0, a.out + row * kPanelRows, ahead);
    }
  }
}

template <class E, Format F, int M = Ops::kRowsBlocked>
inline void multiply_rows(const PanelArgs& a, const uint8_t* piece, int64_t column, int64_t columns, int64_t row,
                          int64_t num_rows, Prefetcher& ahead) {
  if constexpr (M > 0) {
    if (num_rows == M) return multiply_piece<E, F, M>(a, piece, column, columns, row, ahead);
    multiply_rows<E, F, M - 1>(a, piece, column, columns, row, num_rows, ahead);
  }
}

template <class E, Format F>
void many_rows(const PanelArgs& a) {
  using S = Shape<E, F>;
  const int64_t num_tiles = (a.num_rows + Ops::kRowsBlocked - 1) / Ops::kRowsBlocked;
  for (int64_t column = 0; column < a.columns; column += kPieceColumns) {
    const int64_t columns = a.columns - column < kPieceColumns ? a.columns - column : kPieceColumns;
    const uint8_t* codes = a.codes + column / S::kChunkColumns * S::kStepBytes;
    const uint8_t* next = codes + columns / S::kChunkColumns * S::kStepBytes;
    decode_piece<E, F>(codes, columns, a.scratch);
    const bool is_last = column + columns == a.columns;
    Prefetcher ahead{is_last ? codes : next, is_last ? codes : next + (next - codes)};
    for (int64_t tile = 0; tile < num_tiles; ++tile) {  // rows are dealt evenly: 8 are 4 + 4, not 6 + 2
      const int64_t begin = tile * a.num_rows / num_tiles, end = (tile + 1) * a.num_rows / num_tiles;
      multiply_rows<E, F>(a, a.scratch, column, columns, begin, end - begin, ahead);
    }
  }
}

// Rows up to which decoding in registers beats a stored piece. In fp32 only for codes that need no decoding: others become
// too many vectors.
template <class E, Format F>
constexpr int rows_decoding() {
  const bool is_plain = codes_of(F) == Codes::kBf16 || codes_of(F) == Codes::kF32;
  return is_plain || E::kColumnsPerStep == 2 || Ops::kRowsDecoding < 4 ? Ops::kRowsDecoding : 4;
}

template <class E, Format F, int M = rows_decoding<E, F>()>
inline void dispatch_few(const PanelArgs& a) {
  if constexpr (M > 0) {
    if (a.num_rows == M) return few_rows<E, F, M>(a);
    dispatch_few<E, F, M - 1>(a);
  }
}

template <class E, Format F>
void panel(const PanelArgs& a) {
  if (a.num_rows > rows_decoding<E, F>()) return many_rows<E, F>(a);
  dispatch_few<E, F>(a);
}

// ------------------------------------------------------------------------------------------------------------- probes

template <int N>
float total(const Ops::V (&sums)[N]) {
  float lanes[kTileRows], result = 0;
  for (const Ops::V& sum : sums) {
    Ops::store(lanes, sum);
    for (const float lane : lanes) result += lane;
  }
  return result;
}

float read(const uint8_t* from, int64_t num_bytes) {
  constexpr int kSums = 4;
  Ops::V sums[kSums];
  for (Ops::V& sum : sums) sum = Ops::zero();
  const auto* values = reinterpret_cast<const float*>(from);
  for (int64_t i = 0; i < num_bytes / 4; i += kSums * kTileRows) {
    Ops::prefetch_stream(from + 4 * i);
#pragma GCC unroll 4
    for (int n = 0; n < kSums; ++n) sums[n] = Ops::add(sums[n], Ops::load(values + i + n * kTileRows));
  }
  return total(sums);
}

// As many sums as the blocked loop has, so that this is what that loop could reach.
constexpr int kMultiplySums = Ops::kRowsBlocked * Ops::kTilesBlocked;

template <class E>
float multiply(const uint8_t* operands, int64_t num_rounds) {
  Ops::V sums[kMultiplySums];
  for (Ops::V& sum : sums) sum = Ops::zero();
  const typename E::Weight w = E::load(operands);
  for (int64_t round = 0; round < num_rounds; ++round) {
#pragma GCC unroll 32
    for (int n = 0; n < kMultiplySums; ++n) {
      sums[n] = E::multiply_add(sums[n], w, reinterpret_cast<const typename E::X*>(operands));
    }
  }
  return total(sums);
}

template <class E>
constexpr int64_t probe_flop() {
  return int64_t{2} * kMultiplySums * kTileRows * E::kColumnsPerStep;
}

template <class E>
void fill_panels(PanelFn (&table)[kNumFormats]) {
  table[static_cast<int>(Format::kFp8Block)] = panel<E, Format::kFp8Block>;
  table[static_cast<int>(Format::kBf16)] = panel<E, Format::kBf16>;
  table[static_cast<int>(Format::kInt8G128)] = panel<E, Format::kInt8G128>;
  table[static_cast<int>(Format::kInt4G32)] = panel<E, Format::kInt4G32>;
  table[static_cast<int>(Format::kInt4G128)] = panel<E, Format::kInt4G128>;
  table[static_cast<int>(Format::kMxfp4)] = panel<E, Format::kMxfp4>;
}

KernelSet make_kernels() {
  KernelSet set{};
  fill_panels<F32Engine>(set.panel_f32);
  set.panel_f32[static_cast<int>(Format::kF32)] = panel<F32Engine, Format::kF32>;
  set.swiglu_f32 = swiglu_f32;
  set.swiglu_bf16 = swiglu_bf16;
  set.round_to_bf16 = round_values;
  set.add = add;
  set.accumulate = accumulate;
  set.read = read;
  set.multiply = multiply<F32Engine>;
  set.probe_flop = probe_flop<F32Engine>();
  return set;
}
