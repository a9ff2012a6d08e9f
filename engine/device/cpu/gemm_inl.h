// Matrix products over packed panels, for any vector type of vec_portable.h's contract. Every
// output element is one accumulator that runs over k from 0 upwards, whatever the tile it sits in.
#pragma once

#include <cstdint>

#include "engine/device/cpu/kernels.h"

namespace sluice::cpu {
namespace {

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

// Sums of kRows rows by kPanels panels, from k = 0 upwards. How they are made depends on the type
// of the operands: one policy class each.
template <class V, int kRows, int kPanels>
using TileSums = typename V::F[kRows][kPanels];

template <class V>
struct F32Product {
  using Element = float;

  // a: [kRows, a_stride]; b: kPanels panels of panel_size elements each.
  template <int kRows, int kPanels>
  static inline __attribute__((always_inline)) void Add(const float* a, int64_t a_stride,
                                                        const float* b, int64_t panel_size,
                                                        int64_t k,
                                                        TileSums<V, kRows, kPanels>& sums) {
    for (int64_t i = 0; i < k; ++i) {
      typename V::F column[kPanels];
      for (int p = 0; p < kPanels; ++p) column[p] = V::Load(b + p * panel_size + i * kPanelColumns);
      for (int r = 0; r < kRows; ++r) {
        const typename V::F x = V::Set(a[r * a_stride + i]);
        for (int p = 0; p < kPanels; ++p) sums[r][p] = V::Fma(x, column[p], sums[r][p]);
      }
    }
  }
};

// Both operands are widened to fp32, and each product is one fused step: a 512-bit multiply-add
// starts twice a cycle, a bf16 dot product (VDPBF16PS) every other cycle on Intel's cores, so twice
// the multiplications a cycle pay for widening. Rows are widened kWideK elements at a time, so that
// a broadcast is a plain load; weights as they come, first the even elements of the pairs, then the
// odd ones, which needs half the registers. Panels are fetched ahead: the processor's own
// prefetcher stops at the end of a page.
template <class V>
struct Bf16Product {
  using Element = uint16_t;

  template <int kRows, int kPanels>
  static inline __attribute__((always_inline)) void Add(const uint16_t* a, int64_t a_stride,
                                                        const uint16_t* b, int64_t panel_size,
                                                        int64_t k,
                                                        TileSums<V, kRows, kPanels>& sums) {
    constexpr int64_t kWideK = 256;
    constexpr int64_t kFetchAhead = 24 * 2 * kPanelColumns;  // 24 lines of 64 bytes
    alignas(64) float wide[kRows][kWideK];
    for (int64_t begin = 0; begin < k; begin += kWideK) {
      const int64_t n = k - begin < kWideK ? k - begin : kWideK;
      for (int r = 0; r < kRows; ++r) {
        const uint16_t* row = a + r * a_stride + begin;
        for (int64_t i = 0; i < n; i += 16) V::Store(wide[r] + i, V::LoadBf16(row + i));
      }
      const uint16_t* pairs = b + begin * kPanelColumns;
      for (int64_t i = 0; i < n; i += 2, pairs += 2 * kPanelColumns) {
        typename V::F column[kPanels];
        for (int p = 0; p < kPanels; ++p) {
          __builtin_prefetch(pairs + p * panel_size + kFetchAhead);
          column[p] = V::LoadEven(pairs + p * panel_size);
        }
        for (int r = 0; r < kRows; ++r) {
          const typename V::F x = V::Set(wide[r][i]);
          for (int p = 0; p < kPanels; ++p) sums[r][p] = V::Fma(x, column[p], sums[r][p]);
        }
        for (int p = 0; p < kPanels; ++p) column[p] = V::LoadOdd(pairs + p * panel_size);
        for (int r = 0; r < kRows; ++r) {
          const typename V::F x = V::Set(wide[r][i + 1]);
          for (int p = 0; p < kPanels; ++p) sums[r][p] = V::Fma(x, column[p], sums[r][p]);
        }
      }
    }
  }
};

template <class V, class Product, int kRows, int kPanels>
inline void GemmTile(const GemmArgs& args, int row, int64_t panel) {
  using Element = typename Product::Element;
  const int64_t panel_size = args.k * kPanelColumns;
  TileSums<V, kRows, kPanels> sums;
  for (auto& row_of_sums : sums) {
    for (auto& sum : row_of_sums) sum = V::Zero();
  }
  Product::template Add<kRows, kPanels>(
      static_cast<const Element*>(args.a) + row * args.a_stride, args.a_stride,
      static_cast<const Element*>(args.b) + panel * panel_size, panel_size, args.k, sums);
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      StoreTileRow<V>(args, row + r, (panel + p) * kPanelColumns, sums[r][p]);
    }
  }
}

// The last rows of a call, fewer than a whole tile's.
template <class V, class Product, int kRows, int kPanels>
inline void GemmLastRows(const GemmArgs& args, int row, int64_t panel) {
  if constexpr (kRows > 0) {
    if (args.rows - row == kRows) return GemmTile<V, Product, kRows, kPanels>(args, row, panel);
    GemmLastRows<V, Product, kRows - 1, kPanels>(args, row, panel);
  }
}

template <class V, class Product, int kRows, int kPanels>
inline void GemmPanels(const GemmArgs& args, int64_t panel) {
  int row = 0;
  for (; row + kRows <= args.rows; row += kRows) {
    GemmTile<V, Product, kRows, kPanels>(args, row, panel);
  }
  GemmLastRows<V, Product, kRows - 1, kPanels>(args, row, panel);
}

template <class V, class Product>
void Gemm(const GemmArgs& args) {
  const int64_t panels = (args.columns + kPanelColumns - 1) / kPanelColumns;
  int64_t panel = 0;
  if (args.rows == 1) {
    // One row: more panels at once, to have enough independent sums in flight.
    for (; panel + V::kPanelsOneRow <= panels; panel += V::kPanelsOneRow) {
      GemmTile<V, Product, 1, V::kPanelsOneRow>(args, 0, panel);
    }
  }
  if constexpr (V::kPanels >= 4) {
    for (; panel + 4 <= panels; panel += 4) GemmPanels<V, Product, V::kRows, 4>(args, panel);
    for (; panel + 2 <= panels; panel += 2) GemmPanels<V, Product, V::kRows, 2>(args, panel);
  }
  for (; panel < panels; ++panel) GemmPanels<V, Product, V::kRows, 1>(args, panel);
}

}  // namespace
}  // namespace sluice::cpu
