#include "engine/device/cpu/packed_matrix.h"

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "engine/device/bf16.h"
#include "engine/device/cpu/kernels.h"

namespace sluice {
namespace {

using cpu::kPanelColumns;

int64_t PanelCount(int64_t rows) { return (rows + kPanelColumns - 1) / kPanelColumns; }

}  // namespace

CpuMatrix::CpuMatrix(Layout layout, int64_t rows, int64_t columns, int64_t num_panels)
    : layout_(layout), rows_(rows), columns_(columns), num_panels_(num_panels) {
  switch (layout) {
    case Layout::kPanelsF32:
      k_ = columns;
      panel_bytes_ = k_ * kPanelColumns * static_cast<int64_t>(sizeof(float));
      break;
    case Layout::kPanelsBf16:
      k_ = PaddedColumns(columns);
      panel_bytes_ = k_ * kPanelColumns * static_cast<int64_t>(sizeof(Bf16));
      break;
    case Layout::kRowsF32:
      row_bytes_ = columns * static_cast<int64_t>(sizeof(float));
      break;
    case Layout::kRowsBf16:
      row_bytes_ = columns * static_cast<int64_t>(sizeof(Bf16));
      break;
  }
  data_.Reserve(
      static_cast<size_t>(panel_bytes_ > 0 ? panel_bytes_ * num_panels : row_bytes_ * rows));
}

std::unique_ptr<CpuMatrix> CpuMatrix::Pack(const MatrixSource& source, Layout layout,
                                           ThreadPool& pool) {
  std::unique_ptr<CpuMatrix> matrix(
      new CpuMatrix(layout, source.rows, source.columns, PanelCount(source.rows)));
  const bool panels = matrix->panel_bytes_ > 0;
  // A task is a run of 16 rows in both cases.
  constexpr int64_t kPanelsPerTask = 16;
  const int64_t tasks = (matrix->num_panels_ + kPanelsPerTask - 1) / kPanelsPerTask;
  pool.ParallelFor(static_cast<int>(tasks), [&](int task, int) {
    PackScratch scratch;
    const int64_t end = std::min((task + 1) * kPanelsPerTask, matrix->num_panels_);
    for (int64_t panel = task * kPanelsPerTask; panel < end; ++panel) {
      if (panels) {
        matrix->FillPanel(source, panel, panel, scratch);
        continue;
      }
      const int64_t last = std::min((panel + 1) * kPanelColumns, source.rows);
      for (int64_t row = panel * kPanelColumns; row < last; ++row) matrix->FillRow(source, row);
    }
  });
  return matrix;
}

std::unique_ptr<CpuMatrix> CpuMatrix::PackInterleaved(const MatrixSource& gate,
                                                      const MatrixSource& up, Layout layout,
                                                      ThreadPool& pool) {
  SLUICE_CHECK(gate.rows == up.rows && gate.columns == up.columns);
  SLUICE_CHECK(layout == Layout::kPanelsF32 || layout == Layout::kPanelsBf16);
  const int64_t half = PanelCount(gate.rows);
  std::unique_ptr<CpuMatrix> matrix(new CpuMatrix(layout, 2 * gate.rows, gate.columns, 2 * half));
  pool.ParallelFor(static_cast<int>(half), [&](int panel, int) {
    PackScratch scratch;
    matrix->FillPanel(gate, panel, 2 * panel, scratch);
    matrix->FillPanel(up, panel, 2 * panel + 1, scratch);
  });
  return matrix;
}

void CpuMatrix::FillPanel(const MatrixSource& source, int64_t source_panel, int64_t index,
                          PackScratch& scratch) {
  uint8_t* const panel = data_.as<uint8_t>() + index * panel_bytes_;
  const int64_t first = source_panel * kPanelColumns;
  const int64_t count = std::min<int64_t>(kPanelColumns, source.rows - first);
  scratch.row.resize(static_cast<size_t>(PaddedColumns(columns_)));
  float* const row = scratch.row.data();
  if (layout_ == Layout::kPanelsF32) {
    for (int64_t n = 0; n < count; ++n) {
      source.read_row(first + n, row);
      float* out = reinterpret_cast<float*>(panel) + n;
      for (int64_t k = 0; k < columns_; ++k) out[k * kPanelColumns] = row[k];
    }
    return;
  }
  // Rows of pairs first, then pairs of rows, 16 x 16 at a time: the first pass runs along memory,
  // and the second stays within a few cache lines.
  const int64_t pairs = k_ / 2;
  scratch.pairs.assign(static_cast<size_t>(kPanelColumns * pairs), 0);
  std::fill(scratch.row.begin() + columns_, scratch.row.end(), 0.0f);
  for (int64_t n = 0; n < count; ++n) {
    source.read_row(first + n, row);
    uint32_t* out = &scratch.pairs[static_cast<size_t>(n * pairs)];
    for (int64_t i = 0; i < pairs; ++i) {
      out[i] = FloatToBf16(row[2 * i]) | static_cast<uint32_t>(FloatToBf16(row[2 * i + 1])) << 16;
    }
  }
  uint32_t* const out = reinterpret_cast<uint32_t*>(panel);
  for (int64_t block = 0; block < pairs; block += 16) {
    for (int64_t n = 0; n < kPanelColumns; ++n) {
      const uint32_t* in = &scratch.pairs[static_cast<size_t>(n * pairs + block)];
      for (int64_t i = 0; i < 16; ++i) out[(block + i) * kPanelColumns + n] = in[i];
    }
  }
}

void CpuMatrix::FillRow(const MatrixSource& source, int64_t index) {
  uint8_t* const out = data_.as<uint8_t>() + index * row_bytes_;
  if (layout_ == Layout::kRowsF32) {
    source.read_row(index, reinterpret_cast<float*>(out));
    return;
  }
  std::vector<float> row(static_cast<size_t>(columns_));
  source.read_row(index, row.data());
  Bf16* bf16 = reinterpret_cast<Bf16*>(out);
  for (int64_t k = 0; k < columns_; ++k) bf16[k] = FloatToBf16(row[k]);
}

}  // namespace sluice
