// bf16 matrix products with AMX tiles over the panels of GemmArgs: a tile of B is 32 inner steps of
// one panel, contiguous. One and the same instruction sums every row count; a single row uses 1/16
// of it, which costs nothing while the weights stream from memory.
#pragma once

#include <cstdint>

#include "engine/device/cpu/amx_tile.h"
#include "engine/device/cpu/gemm_inl.h"
#include "engine/device/cpu/kernels.h"
#include "engine/device/cpu/vec_avx512.h"

namespace sluice::cpu {
namespace {

struct TileOut {
  alignas(64) float value[kTileRows * kPanelColumns];
};

struct AmxOperands {
  explicit AmxOperands(const GemmArgs& args)
      : a(static_cast<const uint8_t*>(args.a)),
        b(static_cast<const uint8_t*>(args.b)),
        a_stride(args.a_stride * 2),
        panel_bytes(args.k * kPanelColumns * 2),
        steps(args.k / kTileDepth),
        c(static_cast<uint8_t*>(args.c)),
        c_stride(args.c_stride * 4),
        direct_rows(args.epilogue == Epilogue::kStoreF32 && args.c_rows == nullptr ? args.rows : 0),
        direct_columns(args.columns) {}
  const uint8_t* A(int row, int64_t step) const {
    return a + row * a_stride + step * kTileRowBytes;
  }
  const uint8_t* B(int64_t panel, int64_t step) const {
    return b + panel * panel_bytes + step * kTileBytes;
  }
  // Whether the tile at (row, panel) is stored as it is: all of it wanted, in fp32.
  bool Direct(int row, int64_t panel) const {
    return row + kTileRows <= direct_rows && (panel + 1) * kPanelColumns <= direct_columns;
  }
  uint8_t* C(int row, int64_t panel) const {
    return c + row * c_stride + panel * kPanelColumns * 4;
  }
  const uint8_t* a;
  const uint8_t* b;
  int64_t a_stride;  // bytes
  int64_t panel_bytes;
  int64_t steps;
  uint8_t* c;
  int64_t c_stride;  // bytes
  int direct_rows;
  int64_t direct_columns;
};

// Brings the weights of a pass over kPanels panels into the first-level cache some steps before
// their turn, and at the end of the panels those of the next pass. Tile loads alone leave memory
// idle: they reach about one step ahead, and half of what they have in flight is activations.
template <int kPanels>
class WeightPrefetch {
 public:
  // Only the pass over the `first` rows finds the weights in memory.
  WeightPrefetch(const AmxOperands& op, bool first)
      : first_(first),
        last_step_(op.steps - kStepsAhead),
        next_pass_bytes_((kPanels - 1) * op.panel_bytes) {}
  // `tile` is that of step k.
  void Before(const uint8_t* tile, int64_t k) const {
    if (!first_) return;
    tile += kStepsAhead * kTileBytes + (k < last_step_ ? 0 : next_pass_bytes_);
    for (int64_t line = 0; line < kTileBytes; line += 64) PrefetchToL1(tile + line);
  }

 private:
  static constexpr int64_t kStepsAhead = 4;
  const bool first_;
  const int64_t last_step_;
  const int64_t next_pass_bytes_;
};

inline void DeliverTile(const GemmArgs& args, int row, int64_t panel, const TileOut& out) {
  // Of a tile beyond the last row, nothing.
  const int rows = args.rows - row < kTileRows ? args.rows - row : static_cast<int>(kTileRows);
  for (int r = 0; r < rows; ++r) {
    StoreTileRow<Avx512>(args, row + r, panel * kPanelColumns,
                         Avx512::Load(out.value + r * kPanelColumns));
  }
}

// Sum tile `tile` (a literal) becomes the part of C at (row, panel).
#define SLUICE_DELIVER_TILE(tile, row, panel)                 \
  do {                                                        \
    if (op.Direct(row, panel)) {                              \
      SLUICE_TILE_STORE(tile, op.C(row, panel), op.c_stride); \
    } else {                                                  \
      TileOut out;                                            \
      SLUICE_TILE_STORE(tile, out.value, kTileRowBytes);      \
      DeliverTile(args, row, panel, out);                     \
    }                                                         \
  } while (false)

// 32 rows x 3 panels: six sums, and one tile at a time of either operand. Tiles come from the
// second level of cache, whose bandwidth is the limit, so more sums per loaded tile beat an even
// split of the registers (2x2).
inline void AmxTile2x3(const GemmArgs& args, const AmxOperands& op, int row, int64_t panel) {
  SLUICE_TILE_ZERO(0);
  SLUICE_TILE_ZERO(1);
  SLUICE_TILE_ZERO(2);
  SLUICE_TILE_ZERO(3);
  SLUICE_TILE_ZERO(4);
  SLUICE_TILE_ZERO(5);
  const WeightPrefetch<3> prefetch(op, /*first=*/row == 0);
  for (int64_t k = 0; k < op.steps; ++k) {
    KeepVectorUnitAwake();
    SLUICE_TILE_LOAD_STREAM(6, op.A(row, k), op.a_stride);
    prefetch.Before(op.B(panel, k), k);
    SLUICE_TILE_LOAD(7, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_DOT(0, 6, 7);
    prefetch.Before(op.B(panel + 1, k), k);
    SLUICE_TILE_LOAD(7, op.B(panel + 1, k), kTileRowBytes);
    SLUICE_TILE_DOT(1, 6, 7);
    prefetch.Before(op.B(panel + 2, k), k);
    SLUICE_TILE_LOAD(7, op.B(panel + 2, k), kTileRowBytes);
    SLUICE_TILE_DOT(2, 6, 7);
    SLUICE_TILE_LOAD_STREAM(6, op.A(row + 16, k), op.a_stride);
    SLUICE_TILE_DOT(5, 6, 7);
    SLUICE_TILE_LOAD(7, op.B(panel + 1, k), kTileRowBytes);
    SLUICE_TILE_DOT(4, 6, 7);
    SLUICE_TILE_LOAD(7, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_DOT(3, 6, 7);
  }
  SLUICE_DELIVER_TILE(0, row, panel);
  SLUICE_DELIVER_TILE(1, row, panel + 1);
  SLUICE_DELIVER_TILE(2, row, panel + 2);
  SLUICE_DELIVER_TILE(3, row + 16, panel);
  SLUICE_DELIVER_TILE(4, row + 16, panel + 1);
  SLUICE_DELIVER_TILE(5, row + 16, panel + 2);
}

// 32 rows x 2 panels.
inline void AmxTile2x2(const GemmArgs& args, const AmxOperands& op, int row, int64_t panel) {
  SLUICE_TILE_ZERO(0);
  SLUICE_TILE_ZERO(1);
  SLUICE_TILE_ZERO(2);
  SLUICE_TILE_ZERO(3);
  const WeightPrefetch<2> prefetch(op, /*first=*/row == 0);
  for (int64_t k = 0; k < op.steps; ++k) {
    KeepVectorUnitAwake();
    SLUICE_TILE_LOAD(4, op.A(row, k), op.a_stride);
    prefetch.Before(op.B(panel, k), k);
    SLUICE_TILE_LOAD(6, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_DOT(0, 4, 6);
    prefetch.Before(op.B(panel + 1, k), k);
    SLUICE_TILE_LOAD(7, op.B(panel + 1, k), kTileRowBytes);
    SLUICE_TILE_DOT(1, 4, 7);
    SLUICE_TILE_LOAD(5, op.A(row + 16, k), op.a_stride);
    SLUICE_TILE_DOT(2, 5, 6);
    SLUICE_TILE_DOT(3, 5, 7);
  }
  SLUICE_DELIVER_TILE(0, row, panel);
  SLUICE_DELIVER_TILE(1, row, panel + 1);
  SLUICE_DELIVER_TILE(2, row + 16, panel);
  SLUICE_DELIVER_TILE(3, row + 16, panel + 1);
}

// 48 rows x 2 panels.
inline void AmxTile3x2(const GemmArgs& args, const AmxOperands& op, int row, int64_t panel) {
  SLUICE_TILE_ZERO(0);
  SLUICE_TILE_ZERO(1);
  SLUICE_TILE_ZERO(2);
  SLUICE_TILE_ZERO(3);
  SLUICE_TILE_ZERO(4);
  SLUICE_TILE_ZERO(5);
  const WeightPrefetch<2> prefetch(op, /*first=*/row == 0);
  for (int64_t k = 0; k < op.steps; ++k) {
    KeepVectorUnitAwake();
    prefetch.Before(op.B(panel, k), k);
    SLUICE_TILE_LOAD(7, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_LOAD(6, op.A(row, k), op.a_stride);
    SLUICE_TILE_DOT(0, 6, 7);
    SLUICE_TILE_LOAD(6, op.A(row + 16, k), op.a_stride);
    SLUICE_TILE_DOT(1, 6, 7);
    SLUICE_TILE_LOAD(6, op.A(row + 32, k), op.a_stride);
    SLUICE_TILE_DOT(2, 6, 7);
    prefetch.Before(op.B(panel + 1, k), k);
    SLUICE_TILE_LOAD(7, op.B(panel + 1, k), kTileRowBytes);
    SLUICE_TILE_DOT(5, 6, 7);
    SLUICE_TILE_LOAD(6, op.A(row + 16, k), op.a_stride);
    SLUICE_TILE_DOT(4, 6, 7);
    SLUICE_TILE_LOAD(6, op.A(row, k), op.a_stride);
    SLUICE_TILE_DOT(3, 6, 7);
  }
  SLUICE_DELIVER_TILE(0, row, panel);
  SLUICE_DELIVER_TILE(1, row + 16, panel);
  SLUICE_DELIVER_TILE(2, row + 32, panel);
  SLUICE_DELIVER_TILE(3, row, panel + 1);
  SLUICE_DELIVER_TILE(4, row + 16, panel + 1);
  SLUICE_DELIVER_TILE(5, row + 32, panel + 1);
}

// 16 rows x 4 panels.
inline void AmxTile1x4(const GemmArgs& args, const AmxOperands& op, int row, int64_t panel) {
  SLUICE_TILE_ZERO(0);
  SLUICE_TILE_ZERO(1);
  SLUICE_TILE_ZERO(2);
  SLUICE_TILE_ZERO(3);
  for (int64_t k = 0; k < op.steps; ++k) {
    KeepVectorUnitAwake();
    SLUICE_TILE_LOAD(4, op.A(row, k), op.a_stride);
    SLUICE_TILE_LOAD(5, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_DOT(0, 4, 5);
    SLUICE_TILE_LOAD(6, op.B(panel + 1, k), kTileRowBytes);
    SLUICE_TILE_DOT(1, 4, 6);
    SLUICE_TILE_LOAD(7, op.B(panel + 2, k), kTileRowBytes);
    SLUICE_TILE_DOT(2, 4, 7);
    SLUICE_TILE_LOAD(5, op.B(panel + 3, k), kTileRowBytes);
    SLUICE_TILE_DOT(3, 4, 5);
  }
  SLUICE_DELIVER_TILE(0, row, panel);
  SLUICE_DELIVER_TILE(1, row, panel + 1);
  SLUICE_DELIVER_TILE(2, row, panel + 2);
  SLUICE_DELIVER_TILE(3, row, panel + 3);
}

// 16 rows x 1 panel.
inline void AmxTile1x1(const GemmArgs& args, const AmxOperands& op, int row, int64_t panel) {
  SLUICE_TILE_ZERO(0);
  for (int64_t k = 0; k < op.steps; ++k) {
    KeepVectorUnitAwake();
    SLUICE_TILE_LOAD(4, op.A(row, k), op.a_stride);
    SLUICE_TILE_LOAD(5, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_DOT(0, 4, 5);
  }
  SLUICE_DELIVER_TILE(0, row, panel);
}

// Rows [0, paired_rows) by pairs of row tiles, panels from `panel` on; the second row tile of the
// last pair may overhang.
inline void AmxPairedRows(const GemmArgs& args, const AmxOperands& op, int paired_rows,
                          int64_t panel, int64_t panels) {
  for (; panel + 3 <= panels && panels - panel != 4; panel += 3) {
    for (int row = 0; row < paired_rows; row += 32) AmxTile2x3(args, op, row, panel);
  }
  for (; panel + 2 <= panels; panel += 2) {
    for (int row = 0; row < paired_rows; row += 32) AmxTile2x2(args, op, row, panel);
  }
  if (panel == panels) return;
  for (int row = 0; row < paired_rows; row += 16) AmxTile1x1(args, op, row, panel);
}

void GemmAmx(const GemmArgs& args) {
  const TileScope tiles;
  const AmxOperands op(args);
  const int64_t panels = (args.columns + kPanelColumns - 1) / kPanelColumns;
  int64_t panel = 0;
  // 33 to 48 rows (an expert's share of a prompt): one pass over the weights for all of them, since
  // they come from memory and a second pass would leave it idle.
  if (args.rows > 32 && args.rows <= 48) {
    for (; panel + 2 <= panels; panel += 2) AmxTile3x2(args, op, 0, panel);
    if (panel == panels) return;
  }
  const int paired_rows = args.rows <= 16       ? 0
                          : args.rows % 32 > 16 ? args.rows
                                                : args.rows / 32 * 32;
  if (paired_rows > 0) AmxPairedRows(args, op, paired_rows, panel, panels);
  if (paired_rows >= args.rows) return;
  // The last 1 to 16 rows.
  for (; panel + 4 <= panels; panel += 4) AmxTile1x4(args, op, paired_rows, panel);
  for (; panel < panels; ++panel) AmxTile1x1(args, op, paired_rows, panel);
}

#undef SLUICE_DELIVER_TILE

}  // namespace
}  // namespace sluice::cpu
