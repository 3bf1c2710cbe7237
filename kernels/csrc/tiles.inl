// Matrix products in tile registers, for several panels of 64 outputs at once. Included inside an unnamed namespace by
// isa_amx.cpp with the processor's `Tiles` and by isa_amx_emulated.cpp with software's; both define `TileEngine`, which
// decodes codes to pairs of bf16 columns.
//
// A tile is 16 rows of 64 bytes: 16 rows x 32 columns of activations (row blocks of moe_tiles.cpp), 32 columns x 16
// outputs of weights in pairs (16 steps of a decoded panel, 256 bytes apart: the packed layout of bf16 is already that),
// or 16 x 16 fp32 sums. Eight registers: 0 to 3 hold sums; 32 rows x 32 outputs take two tiles of each operand for four
// products, 16 rows x 64 outputs one and four.
//
// The order of a sum does not depend on the number of rows: 32 columns a product (see software_tiles.inl), products in
// ascending order. Formats with scales per 128 columns add up a group in tiles and multiply its sum by the scale, as all
// paths do; the sum of group g is scaled while group g + 1 is multiplied. Groups of 32 columns would be one product each,
// so those formats (int4 g32, mxfp4) are multiplied with their scales when they are decoded: code times scale is a bf16
// number exactly (int4 scales have 5 significant bits, mxfp4's one). They and bf16 stay in tiles over a whole piece.

constexpr int64_t kTileColumns = 32;
constexpr int64_t kActivationTileBytes = kTileRows * kTileRowBytes;
constexpr int64_t kPanelStepBytes = kTilesPerPanel * kChunkBytes;               // two columns of a panel
constexpr int64_t kWeightTileBytes = kTileColumns / 2 * kPanelStepBytes;        // 32 columns of a panel
constexpr int64_t kOutStride = kPanelRows * sizeof(float);
constexpr int64_t kSumTileBytes = kTileRows * kTileRowBytes;
constexpr int kGroupProducts = 128 / kTileColumns;
static_assert(kTilePieceColumns % 128 == 0 && kGroupProducts == 4, "one tile of sums is scaled during each product");

template <Format F>
constexpr bool is_scaled_by_group() {
  return scales_of(F) != Scales::kNone && group_columns(F) == 128;
}

// 32 rows x 2 tiles of outputs.
struct Square {
  static constexpr int kOutputTiles = 2;
  static int row_block(int sum) { return sum / 2; }
  static int output_tile(int sum) { return sum % 2; }
  static void multiply(Tiles& tiles, const uint8_t* x, int64_t block_bytes, const uint8_t* weights) {
    tiles.load<4>(x, kTileRowBytes);
    tiles.load<6>(weights, kPanelStepBytes);
    tiles.multiply_add<0, 4, 6>();
    tiles.load<7>(weights + kChunkBytes, kPanelStepBytes);
    tiles.multiply_add<1, 4, 7>();
    tiles.load<5>(x + block_bytes, kTileRowBytes);
    tiles.multiply_add<2, 5, 6>();
    tiles.multiply_add<3, 5, 7>();
  }
};

// 16 rows or fewer x all 4 tiles of a panel.
struct Wide {
  static int row_block(int) { return 0; }
  static int output_tile(int sum) { return sum; }
  static void multiply(Tiles& tiles, const uint8_t* x, int64_t, const uint8_t* weights) {
    tiles.load<4>(x, kTileRowBytes);
    tiles.load<6>(weights, kPanelStepBytes);
    tiles.multiply_add<0, 4, 6>();
    tiles.load<7>(weights + kChunkBytes, kPanelStepBytes);
    tiles.multiply_add<1, 4, 7>();
    tiles.load<6>(weights + 2 * kChunkBytes, kPanelStepBytes);
    tiles.multiply_add<2, 4, 6>();
    tiles.load<7>(weights + 3 * kChunkBytes, kPanelStepBytes);
    tiles.multiply_add<3, 4, 7>();
  }
};

// One piece of a panel's columns, ready for tiles, and what it is multiplied with.
struct TilePiece {
  const uint8_t* weights;  // of the first output tile
  const uint8_t* scales;   // the panel's
  const uint8_t* x;        // of the first row block, at the piece's first column
  const uint8_t* next_x;   // what comes next, to be fetched into the L2 meanwhile; or nullptr
  int64_t block_bytes;     // from row block to row block
  int64_t column, columns;
  int64_t num_rows;        // of these row blocks that are not padding
  int output_tile;
  float* out;              // f32[num_rows, 64] of the panel, at the first row and output tile
};

template <class Block>
inline void multiply_columns(Tiles& tiles, const TilePiece& piece, int64_t product) {
  const int64_t at = product * kActivationTileBytes;
  Block::multiply(tiles, piece.x + at, piece.block_bytes, piece.weights + product * kWeightTileBytes);
  if (piece.next_x == nullptr) return;
  for (int64_t line = 0; line < kActivationTileBytes; line += kChunkBytes) {
    Ops::prefetch(piece.next_x + at + line);
    Ops::prefetch(piece.next_x + at + piece.block_bytes + line);
  }
}

// out = scale * part (+ out) for one tile of sums.
template <Format F, class Block>
void add_scaled(const TilePiece& piece, int64_t group, const float* part, int sum) {
  const int64_t first = Block::row_block(sum) * kTileRows;
  const int64_t num_rows = piece.num_rows - first < kTileRows ? piece.num_rows - first : kTileRows;
  const int tile = Block::output_tile(sum);
  const Ops::V scale = load_scale<TileEngine, F>(piece.scales, group, piece.output_tile + tile);
  float* out = piece.out + first * kPanelRows + tile * kTileRows;
  for (int64_t row = 0; row < num_rows; ++row, out += kPanelRows, part += kTileRows) {
    const Ops::V before = group == 0 ? Ops::zero() : Ops::load(out);
    Ops::store(out, Ops::fma(Ops::load(part), scale, before));
  }
}

// Groups of 128 columns: their sums leave the tiles and are scaled one group late, a tile during each product.
template <Format F, class Block>
void multiply_by_groups(Tiles& tiles, const TilePiece& piece, uint8_t* staging) {
  const int64_t first = piece.column / 128, num_groups = piece.columns / 128;
  auto* parts = reinterpret_cast<float*>(staging);
  constexpr int64_t kSums = kSumTileBytes / sizeof(float), kBuffer = 4 * kSums;
  for (int64_t g = 0; g <= num_groups; ++g) {
    const float* const before = parts + (g + 1) % 2 * kBuffer;
    if (g < num_groups) {
      tiles.zero<0>();
      tiles.zero<1>();
      tiles.zero<2>();
      tiles.zero<3>();
    }
    for (int i = 0; i < kGroupProducts; ++i) {
      if (g < num_groups) {
        multiply_columns<Block>(tiles, piece, g * kGroupProducts + i);
      }
      if (g > 0) add_scaled<F, Block>(piece, first + g - 1, before + i * kSums, i);
    }
    if (g < num_groups) {
      float* const now = parts + g % 2 * kBuffer;
      tiles.store<0>(now, kTileRowBytes);
      tiles.store<1>(now + kSums, kTileRowBytes);
      tiles.store<2>(now + 2 * kSums, kTileRowBytes);
      tiles.store<3>(now + 3 * kSums, kTileRowBytes);
    }
  }
}

// Weights as they are: sums stay in tiles over the piece, and go on from the piece before.
template <class Block>
void multiply_plain(Tiles& tiles, const TilePiece& piece) {
  float* const out[4] = {
      piece.out + Block::row_block(0) * kTileRows * kPanelRows + Block::output_tile(0) * kTileRows,
      piece.out + Block::row_block(1) * kTileRows * kPanelRows + Block::output_tile(1) * kTileRows,
      piece.out + Block::row_block(2) * kTileRows * kPanelRows + Block::output_tile(2) * kTileRows,
      piece.out + Block::row_block(3) * kTileRows * kPanelRows + Block::output_tile(3) * kTileRows,
  };
  if (piece.column == 0) {
    tiles.zero<0>();
    tiles.zero<1>();
    tiles.zero<2>();
    tiles.zero<3>();
  } else {
    tiles.load<0>(out[0], kOutStride);
    tiles.load<1>(out[1], kOutStride);
    tiles.load<2>(out[2], kOutStride);
    tiles.load<3>(out[3], kOutStride);
  }
  for (int64_t i = 0; i < piece.columns / kTileColumns; ++i) multiply_columns<Block>(tiles, piece, i);
  tiles.store<0>(out[0], kOutStride);
  tiles.store<1>(out[1], kOutStride);
  tiles.store<2>(out[2], kOutStride);
  tiles.store<3>(out[3], kOutStride);
}

// Codes of a piece to bf16 pairs, with their scales where groups are small. Fetches the next piece meanwhile, so
// that memory works while tiles do.
template <Format F>
const uint8_t* ready_for_tiles(const TilePanel& panel, int64_t column, int64_t columns, uint8_t* to) {
  using S = Shape<TileEngine, F>;
  const uint8_t* const codes = panel.codes + column / S::kChunkColumns * S::kStepBytes;
  const int64_t piece_bytes = columns / S::kChunkColumns * S::kStepBytes;
  if constexpr (F == Format::kBf16) {
    for (int64_t at = 0; at < piece_bytes; at += kChunkBytes) Ops::prefetch(codes + piece_bytes + at);
    return codes;
  }
  constexpr int kChunksPerGroup = group_columns(F) / S::kChunkColumns;
  for (int64_t chunk = 0; chunk < columns / S::kChunkColumns; ++chunk) {
    for (int tile = 0; tile < kTilesPerPanel; ++tile) {
      const uint8_t* const from = codes + chunk * S::kStepBytes + tile * kChunkBytes;
      Ops::prefetch(from + piece_bytes);
      typename TileEngine::Weight w[S::kSteps];
      TileEngine::template decode<F>(from, w);
      for (int s = 0; s < S::kSteps; ++s) {
        if constexpr (scales_of(F) != Scales::kNone && !is_scaled_by_group<F>()) {
          const int64_t group = column / group_columns(F) + chunk / kChunksPerGroup;
          w[s] = TileEngine::dequantized(w[s], load_scale<TileEngine, F>(panel.scales, group, tile));
        }
        TileEngine::store(to + (chunk * S::kSteps + s) * S::kStepBytes + tile * kChunkBytes, w[s]);
      }
    }
  }
  return to;
}

template <Format F, class Block>
void multiply_piece(Tiles& tiles, const TilePiece& piece, uint8_t* staging) {
  if constexpr (is_scaled_by_group<F>()) multiply_by_groups<F, Block>(tiles, piece, staging);
  else multiply_plain<Block>(tiles, piece);
}

// A piece of a panel times all rows. Half of its weights, 16 KiB, stay in L1 while the rows go by.
template <Format F>
void multiply_rows(Tiles& tiles, const TileArgs& a, const TilePanel& panel, const uint8_t* weights, int64_t column,
                   int64_t columns, bool is_first_panel) {
  uint8_t* const staging = a.scratch + kTilePieceBytes;
  const uint8_t* const x = a.x + column / kTileColumns * kActivationTileBytes;
  const int64_t num_blocks = (a.num_rows + kTileRows - 1) / kTileRows, last = num_blocks - num_blocks % 2;
  TilePiece piece{weights, panel.scales, x, nullptr, a.block_bytes, column, columns, a.num_rows, 0, panel.out};
  for (int tile = 0; tile < kTilesPerPanel; tile += Square::kOutputTiles) {
    piece.output_tile = tile;
    piece.weights = weights + tile * kChunkBytes;
    for (int64_t block = 0; block < last; block += 2) {
      piece.x = x + block * a.block_bytes;
      piece.next_x = is_first_panel && tile == 0 && block + 2 < last ? piece.x + 2 * a.block_bytes : nullptr;
      piece.num_rows = a.num_rows - block * kTileRows;
      piece.out = panel.out + block * kTileRows * kPanelRows + tile * kTileRows;
      multiply_piece<F, Square>(tiles, piece, staging);
    }
  }
  if (last == num_blocks) return;
  multiply_piece<F, Wide>(tiles,
                          {weights, panel.scales, x + last * a.block_bytes, nullptr, a.block_bytes, column, columns,
                           a.num_rows - last * kTileRows, 0, panel.out + last * kTileRows * kPanelRows},
                          staging);
}

// All panels' pieces are multiplied with all rows before the next pieces: activations come from memory once for all panels.
template <Format F>
void multiply_tiles(const TileArgs& a) {
  Tiles tiles(a.num_rows < kTileRows ? static_cast<int>(a.num_rows) : kTileRows);
  for (int64_t column = 0; column < a.columns; column += kTilePieceColumns) {
    const int64_t columns = a.columns - column < kTilePieceColumns ? a.columns - column : kTilePieceColumns;
    for (int i = 0; i < a.num_panels; ++i) {
      const uint8_t* const weights = ready_for_tiles<F>(a.panels[i], column, columns, a.scratch);
      multiply_rows<F>(tiles, a, a.panels[i], weights, column, columns, i == 0);
    }
  }
}

void fill_tiles(TilesFn (&table)[kNumFormats]) {
  table[static_cast<int>(Format::kFp8Block)] = multiply_tiles<Format::kFp8Block>;
  table[static_cast<int>(Format::kBf16)] = multiply_tiles<Format::kBf16>;
  table[static_cast<int>(Format::kInt8G128)] = multiply_tiles<Format::kInt8G128>;
  table[static_cast<int>(Format::kInt4G32)] = multiply_tiles<Format::kInt4G32>;
  table[static_cast<int>(Format::kInt4G128)] = multiply_tiles<Format::kInt4G128>;
  table[static_cast<int>(Format::kMxfp4)] = multiply_tiles<Format::kMxfp4>;
}
