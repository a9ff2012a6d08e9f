// Weights in the layouts of the CPU kernels (see GemmArgs). Packed once at load by several threads,
// constant afterwards.
#pragma once

#include <vector>

#include "engine/device/backend.h"
#include "engine/device/thread_pool.h"

namespace sluice {

class CpuMatrix final : public PackedMatrix {
 public:
  enum class Layout {
    kPanelsF32,   // [panel][k][16]
    kPanelsBf16,  // [panel][k / 2][16][2], k padded to a multiple of 32
    kRowsF32,     // [row][column]
    kRowsBf16,
  };

  static std::unique_ptr<CpuMatrix> Pack(const MatrixSource& source, Layout layout,
                                         ThreadPool& pool);
  // Panels of gate and up take turns: panel 2i is gate's i-th, panel 2i+1 is up's.
  static std::unique_ptr<CpuMatrix> PackInterleaved(const MatrixSource& gate,
                                                    const MatrixSource& up, Layout layout,
                                                    ThreadPool& pool);

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t size_bytes() const override { return static_cast<int64_t>(data_.size_bytes()); }

  Layout layout() const { return layout_; }
  // Inner dimension as the kernels see it.
  int64_t k() const { return k_; }
  int64_t num_panels() const { return num_panels_; }
  const uint8_t* panel(int64_t index) const { return data_.as<uint8_t>() + index * panel_bytes_; }
  const uint8_t* row(int64_t index) const { return data_.as<uint8_t>() + index * row_bytes_; }

 private:
  CpuMatrix(Layout layout, int64_t rows, int64_t columns, int64_t num_panels);
  struct PackScratch {
    std::vector<float> row;       // [padded columns]
    std::vector<uint32_t> pairs;  // [16, k / 2] two bf16 each
  };
  // Rows [16 * source_panel, +16) of `source` become panel `index`.
  void FillPanel(const MatrixSource& source, int64_t source_panel, int64_t index,
                 PackScratch& scratch);
  void FillRow(const MatrixSource& source, int64_t row);

  const Layout layout_;
  const int64_t rows_;
  const int64_t columns_;
  const int64_t num_panels_;
  int64_t k_ = 0;
  int64_t panel_bytes_ = 0;
  int64_t row_bytes_ = 0;
  Buffer data_;
};

}  // namespace sluice
