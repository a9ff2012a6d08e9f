// Matrix products over packed panels, for any vector type of vec_portable.h's contract. Every
// output element is one accumulator that runs over k from 0 upwards, whatever the tile it sits in.
#pragma once

#include <cstdint>

#include "engine/device/cpu/kernels.h"

namespace sluice::cpu {
namespace {

// Operand types: one step of k is one f32 element, or a pair of bf16.
template <class V>
struct F32Operand {
  using Element = float;
  using Vector = typename V::F;
  static constexpr int kStep = 1;
  static Vector LoadPanel(const float* p) { return V::Load(p); }
  static Vector Broadcast(const float* p) { return V::Set(*p); }
  static typename V::F MulAdd(Vector a, Vector b, typename V::F acc) { return V::Fma(a, b, acc); }
};

template <class V>
struct Bf16Operand {
  using Element = uint16_t;
  using Vector = typename V::Pairs;
  static constexpr int kStep = 2;
  static Vector LoadPanel(const uint16_t* p) { return V::LoadPairs(p); }
  static Vector Broadcast(const uint16_t* p) { return V::BroadcastPair(p); }
  static typename V::F MulAdd(Vector a, Vector b, typename V::F acc) {
    return V::DotPairs(acc, a, b);
  }
};

// Delivers one accumulator: row r of the call, columns [column, column + 16) cut at args.columns.
template <class V>
inline void StoreTileRow(const GemmArgs& args, int r, int64_t column, typename V::F sum) {
  const int64_t left = args.columns - column;
  const int n = left < kPanelColumns ? static_cast<int>(left) : kPanelColumns;
  const int64_t row = args.c_rows != nullptr ? args.c_rows[r] : r;
  const int64_t offset = row * args.c_stride + column;
  switch (args.epilogue) {
    case Epilogue::kStoreF32:
      V::StoreFirst(static_cast<float*>(args.c) + offset, sum, n);
      break;
    case Epilogue::kAddF32: {
      float* c = static_cast<float*>(args.c) + offset;
      const typename V::F old = V::LoadFirst(c, n);
      V::StoreFirst(c,
                    args.row_scale != nullptr ? V::Fma(V::Set(args.row_scale[r]), sum, old)
                                              : V::Add(old, sum),
                    n);
      break;
    }
    case Epilogue::kStoreBf16:
      V::StoreBf16First(static_cast<uint16_t*>(args.c) + offset, sum, n);
      break;
  }
}

template <class V, class Op, int kRows, int kPanels>
inline void GemmTile(const GemmArgs& args, int row, int64_t panel) {
  using Element = typename Op::Element;
  const Element* a = static_cast<const Element*>(args.a) + row * args.a_stride;
  const int64_t panel_size = args.k * kPanelColumns;
  const Element* b = static_cast<const Element*>(args.b) + panel * panel_size;
  typename V::F acc[kRows][kPanels];
  for (auto& acc_row : acc) {
    for (auto& lane : acc_row) lane = V::Zero();
  }
  for (int64_t k = 0; k < args.k; k += Op::kStep) {
    typename Op::Vector column[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      column[p] = Op::LoadPanel(b + p * panel_size + k * kPanelColumns);
    }
    for (int r = 0; r < kRows; ++r) {
      const typename Op::Vector x = Op::Broadcast(a + r * args.a_stride + k);
      for (int p = 0; p < kPanels; ++p) acc[r][p] = Op::MulAdd(x, column[p], acc[r][p]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      StoreTileRow<V>(args, row + r, (panel + p) * kPanelColumns, acc[r][p]);
    }
  }
}

template <class V, class Op, int kRows, int kPanels>
inline void GemmPanels(const GemmArgs& args, int64_t panel) {
  int row = 0;
  for (; row + kRows <= args.rows; row += kRows) GemmTile<V, Op, kRows, kPanels>(args, row, panel);
  switch (args.rows - row) {
    case 3:
      if constexpr (kRows > 3) GemmTile<V, Op, 3, kPanels>(args, row, panel);
      break;
    case 2:
      if constexpr (kRows > 2) GemmTile<V, Op, 2, kPanels>(args, row, panel);
      break;
    case 1:
      if constexpr (kRows > 1) GemmTile<V, Op, 1, kPanels>(args, row, panel);
      break;
    default:
      break;
  }
}

template <class V, class Op>
void Gemm(const GemmArgs& args) {
  const int64_t panels = (args.columns + kPanelColumns - 1) / kPanelColumns;
  int64_t panel = 0;
  if (args.rows == 1) {
    // One row: more panels at once, to have enough independent sums in flight.
    for (; panel + V::kPanelsOneRow <= panels; panel += V::kPanelsOneRow) {
      GemmTile<V, Op, 1, V::kPanelsOneRow>(args, 0, panel);
    }
  }
  if constexpr (V::kPanels >= 4) {
    for (; panel + 4 <= panels; panel += 4) GemmPanels<V, Op, V::kRows, 4>(args, panel);
    for (; panel + 2 <= panels; panel += 2) GemmPanels<V, Op, V::kRows, 2>(args, panel);
  }
  for (; panel < panels; ++panel) GemmPanels<V, Op, V::kRows, 1>(args, panel);
}

}  // namespace
}  // namespace sluice::cpu
