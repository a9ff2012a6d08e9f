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

inline void DeliverTile(const GemmArgs& args, int row, int64_t panel, const TileOut& out) {
  const int rows = args.rows - row < kTileRows ? args.rows - row : static_cast<int>(kTileRows);
  for (int r = 0; r < rows; ++r) {
    StoreTileRow<Avx512>(args, row + r, panel * kPanelColumns,
                         Avx512::Load(out.value + r * kPanelColumns));
  }
}

struct AmxOperands {
  explicit AmxOperands(const GemmArgs& args)
      : a(static_cast<const uint8_t*>(args.a)),
        b(static_cast<const uint8_t*>(args.b)),
        a_stride(args.a_stride * 2),
        panel_bytes(args.k * kPanelColumns * 2),
        steps(args.k / kTileDepth) {}
  const uint8_t* A(int row, int64_t step) const {
    return a + row * a_stride + step * kTileRowBytes;
  }
  const uint8_t* B(int64_t panel, int64_t step) const {
    return b + panel * panel_bytes + step * kTileBytes;
  }
  const uint8_t* a;
  const uint8_t* b;
  int64_t a_stride;  // bytes
  int64_t panel_bytes;
  int64_t steps;
};

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
  for (int64_t k = 0; k < op.steps; ++k) {
    SLUICE_TILE_LOAD(6, op.A(row, k), op.a_stride);
    SLUICE_TILE_LOAD(7, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_DOT(0, 6, 7);
    SLUICE_TILE_LOAD(7, op.B(panel + 1, k), kTileRowBytes);
    SLUICE_TILE_DOT(1, 6, 7);
    SLUICE_TILE_LOAD(7, op.B(panel + 2, k), kTileRowBytes);
    SLUICE_TILE_DOT(2, 6, 7);
    SLUICE_TILE_LOAD(6, op.A(row + 16, k), op.a_stride);
    SLUICE_TILE_DOT(5, 6, 7);
    SLUICE_TILE_LOAD(7, op.B(panel + 1, k), kTileRowBytes);
    SLUICE_TILE_DOT(4, 6, 7);
    SLUICE_TILE_LOAD(7, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_DOT(3, 6, 7);
  }
  TileOut out[6];
  SLUICE_TILE_STORE(0, out[0].value, kTileRowBytes);
  SLUICE_TILE_STORE(1, out[1].value, kTileRowBytes);
  SLUICE_TILE_STORE(2, out[2].value, kTileRowBytes);
  SLUICE_TILE_STORE(3, out[3].value, kTileRowBytes);
  SLUICE_TILE_STORE(4, out[4].value, kTileRowBytes);
  SLUICE_TILE_STORE(5, out[5].value, kTileRowBytes);
  for (int p = 0; p < 3; ++p) {
    DeliverTile(args, row, panel + p, out[p]);
    DeliverTile(args, row + 16, panel + p, out[3 + p]);
  }
}

// 32 rows x 2 panels.
inline void AmxTile2x2(const GemmArgs& args, const AmxOperands& op, int row, int64_t panel) {
  SLUICE_TILE_ZERO(0);
  SLUICE_TILE_ZERO(1);
  SLUICE_TILE_ZERO(2);
  SLUICE_TILE_ZERO(3);
  for (int64_t k = 0; k < op.steps; ++k) {
    SLUICE_TILE_LOAD(4, op.A(row, k), op.a_stride);
    SLUICE_TILE_LOAD(6, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_DOT(0, 4, 6);
    SLUICE_TILE_LOAD(7, op.B(panel + 1, k), kTileRowBytes);
    SLUICE_TILE_DOT(1, 4, 7);
    SLUICE_TILE_LOAD(5, op.A(row + 16, k), op.a_stride);
    SLUICE_TILE_DOT(2, 5, 6);
    SLUICE_TILE_DOT(3, 5, 7);
  }
  TileOut out[4];
  SLUICE_TILE_STORE(0, out[0].value, kTileRowBytes);
  SLUICE_TILE_STORE(1, out[1].value, kTileRowBytes);
  SLUICE_TILE_STORE(2, out[2].value, kTileRowBytes);
  SLUICE_TILE_STORE(3, out[3].value, kTileRowBytes);
  DeliverTile(args, row, panel, out[0]);
  DeliverTile(args, row, panel + 1, out[1]);
  DeliverTile(args, row + 16, panel, out[2]);
  DeliverTile(args, row + 16, panel + 1, out[3]);
}

// 16 rows x 4 panels.
inline void AmxTile1x4(const GemmArgs& args, const AmxOperands& op, int row, int64_t panel) {
  SLUICE_TILE_ZERO(0);
  SLUICE_TILE_ZERO(1);
  SLUICE_TILE_ZERO(2);
  SLUICE_TILE_ZERO(3);
  for (int64_t k = 0; k < op.steps; ++k) {
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
  TileOut out[4];
  SLUICE_TILE_STORE(0, out[0].value, kTileRowBytes);
  SLUICE_TILE_STORE(1, out[1].value, kTileRowBytes);
  SLUICE_TILE_STORE(2, out[2].value, kTileRowBytes);
  SLUICE_TILE_STORE(3, out[3].value, kTileRowBytes);
  for (int p = 0; p < 4; ++p) DeliverTile(args, row, panel + p, out[p]);
}

// 16 rows x 1 panel.
inline void AmxTile1x1(const GemmArgs& args, const AmxOperands& op, int row, int64_t panel) {
  SLUICE_TILE_ZERO(0);
  for (int64_t k = 0; k < op.steps; ++k) {
    SLUICE_TILE_LOAD(4, op.A(row, k), op.a_stride);
    SLUICE_TILE_LOAD(5, op.B(panel, k), kTileRowBytes);
    SLUICE_TILE_DOT(0, 4, 5);
  }
  TileOut out;
  SLUICE_TILE_STORE(0, out.value, kTileRowBytes);
  DeliverTile(args, row, panel, out);
}

// Rows [0, paired_rows) by pairs of row tiles; the second of the last pair may overhang.
inline void AmxPairedRows(const GemmArgs& args, const AmxOperands& op, int paired_rows,
                          int64_t panels) {
  int64_t panel = 0;
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
  const int paired_rows = args.rows <= 16       ? 0
                          : args.rows % 32 > 16 ? args.rows
                                                : args.rows / 32 * 32;
  if (paired_rows > 0) AmxPairedRows(args, op, paired_rows, panels);
  if (paired_rows >= args.rows) return;
  // The last 1 to 16 rows.
  int64_t panel = 0;
  for (; panel + 4 <= panels; panel += 4) AmxTile1x4(args, op, paired_rows, panel);
  for (; panel < panels; ++panel) AmxTile1x1(args, op, paired_rows, panel);
}

}  // namespace
}  // namespace sluice::cpu
