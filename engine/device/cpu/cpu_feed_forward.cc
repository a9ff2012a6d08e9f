// FeedForward of the CPU backend: the chosen experts, grouped so that each expert's weights are
// read once a step, and the shared experts (or the dense network) in the same two loops.
//
// Loop 1 computes silu(gate) * up per expert, the shared network, the largest, first; loop 2 the
// down projections. A task of loop 2 owns some columns of all rows and walks the experts in
// ascending order, so each sum has one order.
#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "engine/device/cpu/cpu_backend.h"
#include "engine/device/task_split.h"

namespace sluice {
namespace {

using cpu::Epilogue;
using cpu::GemmArgs;
using cpu::kPanelColumns;

const CpuMatrix& AsCpu(const std::unique_ptr<PackedMatrix>& matrix) {
  return *static_cast<const CpuMatrix*>(matrix.get());
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kPairsPerPass = 6;  // of panels in one call: 96 gate and 96 up columns
constexpr int kRowsPerPass = 64;

int64_t PassesOf(const FeedForwardWeights& weights) {
  return CeilDiv(AsCpu(weights.gate_up).num_panels() / 2, kPairsPerPass);
}

// What kPairsPerPass pairs cost for so many rows: each row's products, and the weights' way from
// memory, which takes as long as the products of about 80 rows.
int64_t WorkOfPass(int num_rows) { return num_rows + 80; }

}  // namespace

Activations& CpuBackend::HiddenBuffer(int64_t columns, bool shared, int64_t rows) {
  Activations& hidden =
      hidden_.try_emplace({columns, shared}, Activations(dtype_, columns)).first->second;
  hidden.ReserveRows(rows);
  return hidden;
}

// Counting sort of (token, choice) pairs by expert; tokens stay ascending within an expert.
void CpuBackend::GroupRowsByExpert(const FeedForwardParams& params) {
  const int k = params.experts_per_token;
  const int pairs = params.rows * k;
  expert_cursor_.assign(params.experts.size() + 1, 0);
  for (int i = 0; i < pairs; ++i) ++expert_cursor_[static_cast<size_t>(params.chosen[i]) + 1];
  expert_rows_.clear();
  for (size_t e = 0; e < params.experts.size(); ++e) {
    const int count = expert_cursor_[e + 1];
    if (count > 0) expert_rows_.push_back({&params.experts[e], expert_cursor_[e], count});
    expert_cursor_[e + 1] += expert_cursor_[e];
  }
  gathered_token_.resize(static_cast<size_t>(pairs));
  gathered_weight_.resize(static_cast<size_t>(pairs));
  for (int i = 0; i < pairs; ++i) {
    const size_t at = static_cast<size_t>(expert_cursor_[static_cast<size_t>(params.chosen[i])]++);
    gathered_token_[at] = i / k;
    gathered_weight_[at] = params.weights[i];
  }
}

void CpuBackend::AddHiddenTasks(const FeedForwardWeights& weights, const void* x, int64_t x_stride,
                                Activations& hidden, int first_row, int num_rows,
                                int64_t& work_left) {
  const int64_t pairs = AsCpu(weights.gate_up).num_panels() / 2;
  const int64_t work_of_pass = WorkOfPass(num_rows);
  for (int64_t left = PassesOf(weights), first = 0; left > 0;) {
    const int64_t passes =
        std::clamp<int64_t>(NextShare(work_left, pool_.num_threads()) / work_of_pass, 1, left);
    FeedForwardTask task;
    task.weights = &weights;
    task.x = x;
    task.x_stride = x_stride;
    task.hidden =
        static_cast<uint8_t*>(hidden.data()) + first_row * hidden.stride() * DTypeBytes(dtype_);
    task.hidden_stride = hidden.stride();
    task.num_rows = num_rows;
    task.first_pair = first;
    task.num_pairs = std::min(passes * kPairsPerPass, pairs - first);
    hidden_tasks_.push_back(task);
    first += task.num_pairs;
    left -= passes;
    work_left -= passes * work_of_pass;
  }
}

void CpuBackend::RunHiddenTask(const FeedForwardTask& task, int worker) {
  const CpuMatrix& gate_up = AsCpu(task.weights->gate_up);
  const int64_t intermediate = gate_up.rows() / 2;
  constexpr int64_t kStride = 2 * kPairsPerPass * kPanelColumns;
  Buffer& scratch = worker_scratch_[static_cast<size_t>(worker)];
  scratch.Reserve(kRowsPerPass * kStride * sizeof(float));
  const int64_t element = DTypeBytes(dtype_);
  for (int64_t pair = task.first_pair; pair < task.first_pair + task.num_pairs;
       pair += kPairsPerPass) {
    const int64_t pairs = std::min(kPairsPerPass, task.first_pair + task.num_pairs - pair);
    const int64_t column = pair * kPanelColumns;
    const int64_t columns = std::min(pairs * kPanelColumns, intermediate - column);
    for (int row = 0; row < task.num_rows; row += kRowsPerPass) {
      GemmArgs args;
      args.a = static_cast<const uint8_t*>(task.x) + row * task.x_stride * element;
      args.a_stride = task.x_stride;
      args.rows = std::min(kRowsPerPass, task.num_rows - row);
      args.b = gate_up.panel(2 * pair);
      args.k = gate_up.k();
      args.columns = 2 * pairs * kPanelColumns;
      args.c = scratch.data();
      args.c_stride = kStride;
      Gemm(args, dtype_);
      for (int r = 0; r < args.rows; ++r) {
        const float* pair_row = scratch.as<float>() + r * kStride;
        const int64_t offset = (row + r) * task.hidden_stride + column;
        if (dtype_ == DType::kBF16) {
          kernels_.silu_mul_bf16(pair_row, static_cast<uint16_t*>(task.hidden) + offset, columns);
        } else {
          kernels_.silu_mul_f32(pair_row, static_cast<float*>(task.hidden) + offset, columns);
        }
      }
    }
  }
}

// Whole register tiles of a few rows (4 panels); at most 16 panels, whose part of one expert fits
// the second level of cache.
void CpuBackend::PlanDown(int64_t panels) {
  constexpr int64_t kUnitPanels = 4, kMaxUnits = 4;
  const int64_t units = CeilDiv(panels, kUnitPanels);
  down_tasks_.clear();
  for (int64_t first = 0; first < units;) {
    const int64_t share = std::min(NextShare(units - first, pool_.num_threads()), kMaxUnits);
    down_tasks_.push_back({first * kUnitPanels, std::min(panels, (first + share) * kUnitPanels)});
    first += share;
  }
}

void CpuBackend::FeedForward(const FeedForwardParams& params) {
  const int64_t element = DTypeBytes(dtype_);
  const int64_t x_stride = params.x->stride();
  hidden_tasks_.clear();
  expert_rows_.clear();
  if (!params.experts.empty()) GroupRowsByExpert(params);
  int64_t work_left = 0;
  if (params.shared != nullptr) work_left = PassesOf(*params.shared) * WorkOfPass(params.rows);
  for (const ExpertRows& rows : expert_rows_) {
    work_left += PassesOf(*rows.weights) * WorkOfPass(rows.num_rows);
  }

  Activations* shared_hidden = nullptr;
  if (params.shared != nullptr) {
    const CpuMatrix& gate_up = AsCpu(params.shared->gate_up);
    shared_hidden = &HiddenBuffer(gate_up.rows() / 2, /*shared=*/true, params.rows);
    AddHiddenTasks(*params.shared, params.x->data(), x_stride, *shared_hidden, 0, params.rows,
                   work_left);
  }
  Activations* routed_hidden = nullptr;
  if (!params.experts.empty()) {
    const int64_t pairs = int64_t{params.rows} * params.experts_per_token;
    const CpuMatrix& first = AsCpu(params.experts[0].gate_up);
    routed_hidden = &HiddenBuffer(first.rows() / 2, /*shared=*/false, pairs);
    const void* x = params.x->data();
    // A single token's row serves all its experts as it is; several are gathered expert by expert.
    if (params.rows > 1) {
      Activations& gathered =
          gathered_x_.try_emplace(first.columns(), Activations(dtype_, first.columns()))
              .first->second;
      gathered.ReserveRows(pairs);
      ForRows(static_cast<int>(pairs), /*grain=*/64, [&](int begin, int end) {
        for (int i = begin; i < end; ++i) {
          std::memcpy(static_cast<uint8_t*>(gathered.data()) + i * x_stride * element,
                      static_cast<const uint8_t*>(params.x->data()) +
                          gathered_token_[static_cast<size_t>(i)] * x_stride * element,
                      static_cast<size_t>(x_stride * element));
        }
      });
      x = gathered.data();
    }
    for (const ExpertRows& rows : expert_rows_) {
      const int64_t row = params.rows > 1 ? rows.first_row : 0;
      AddHiddenTasks(*rows.weights, static_cast<const uint8_t*>(x) + row * x_stride * element,
                     x_stride, *routed_hidden, rows.first_row, rows.num_rows, work_left);
    }
  }
  pool_.ParallelFor(static_cast<int>(hidden_tasks_.size()), [&](int task, int worker) {
    RunHiddenTask(hidden_tasks_[static_cast<size_t>(task)], worker);
  });

  const CpuMatrix& any_down =
      AsCpu(params.shared != nullptr ? params.shared->down : params.experts[0].down);
  const int64_t hidden_size = any_down.rows();
  PlanDown(any_down.num_panels());
  pool_.ParallelFor(static_cast<int>(down_tasks_.size()), [&](int task, int) {
    const PanelRange panels = down_tasks_[static_cast<size_t>(task)];
    const int64_t panel = panels.begin;
    GemmArgs args;
    args.columns = std::min(hidden_size, panels.end * kPanelColumns) - panel * kPanelColumns;
    args.c = params.y + panel * kPanelColumns;
    args.c_stride = hidden_size;
    args.epilogue = Epilogue::kAddF32;
    for (const ExpertRows& rows : expert_rows_) {
      const CpuMatrix& down = AsCpu(rows.weights->down);
      args.a = static_cast<const uint8_t*>(routed_hidden->data()) +
               rows.first_row * routed_hidden->stride() * element;
      args.a_stride = routed_hidden->stride();
      args.rows = rows.num_rows;
      args.b = down.panel(panel);
      args.k = down.k();
      args.c_rows = gathered_token_.data() + rows.first_row;
      args.row_scale = gathered_weight_.data() + rows.first_row;
      Gemm(args, dtype_);
    }
    if (params.shared != nullptr) {
      const CpuMatrix& down = AsCpu(params.shared->down);
      args.a = shared_hidden->data();
      args.a_stride = shared_hidden->stride();
      args.rows = params.rows;
      args.b = down.panel(panel);
      args.k = down.k();
      args.c_rows = nullptr;
      args.row_scale = nullptr;
      Gemm(args, dtype_);
    }
  });
}

}  // namespace sluice
