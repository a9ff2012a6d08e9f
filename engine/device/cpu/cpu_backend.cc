#include "engine/device/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/processors.h"
#include "engine/device/bf16.h"
#include "engine/device/cpu/gate.h"
#include "engine/device/task_split.h"

namespace sluice {
namespace {

using cpu::Epilogue;
using cpu::GemmArgs;
using cpu::kPanelColumns;

const CpuMatrix& AsCpu(const PackedMatrix* matrix) {
  return *static_cast<const CpuMatrix*>(matrix);
}

// Row r of [.., stride] elements of `dtype`.
const void* RowAt(const void* base, int64_t row, int64_t stride, DType dtype) {
  return static_cast<const uint8_t*>(base) + row * stride * DTypeBytes(dtype);
}
void* RowAt(void* base, int64_t row, int64_t stride, DType dtype) {
  return static_cast<uint8_t*>(base) + row * stride * DTypeBytes(dtype);
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

CpuBackend::CpuBackend(DType dtype, Isa isa, int num_threads, int niceness)
    : dtype_(dtype),
      isa_(isa),
      kernels_(KernelsFor(isa)),
      pool_(num_threads > 0 ? num_threads : AvailableProcessors(), niceness),
      worker_scratch_(static_cast<size_t>(pool_.num_threads())) {}

// Raised when a kernel's order of sums changes, so that workers whose bits would differ never share
// KV.
constexpr int kArithmeticRevision = 3;

std::string CpuBackend::kernel_family() const {
  return absl::StrCat("cpu-", IsaName(isa_), "-", DTypeName(dtype_), "-r", kArithmeticRevision);
}

void CpuBackend::ForRows(int rows, int grain, absl::FunctionRef<void(int, int)> fn) {
  const int tasks =
      static_cast<int>(std::min<int64_t>(CeilDiv(rows, grain), int64_t{4} * pool_.num_threads()));
  pool_.ParallelFor(tasks, [&](int task, int) {
    fn(static_cast<int>(int64_t{rows} * task / tasks),
       static_cast<int>(int64_t{rows} * (task + 1) / tasks));
  });
}

void CpuBackend::Gemm(const GemmArgs& args, DType dtype) const {
  if (dtype == DType::kBF16) {
    kernels_.gemm_bf16(args);
  } else {
    kernels_.gemm_f32(args);
  }
}

// ---- Packing ------------------------------------------------------------------------------------

std::unique_ptr<PackedMatrix> CpuBackend::Pack(const MatrixSource& source) {
  return CpuMatrix::Pack(
      source,
      dtype_ == DType::kBF16 ? CpuMatrix::Layout::kPanelsBf16 : CpuMatrix::Layout::kPanelsF32,
      pool_);
}

std::unique_ptr<PackedMatrix> CpuBackend::PackGateUp(const MatrixSource& gate,
                                                     const MatrixSource& up) {
  return CpuMatrix::PackInterleaved(
      gate, up,
      dtype_ == DType::kBF16 ? CpuMatrix::Layout::kPanelsBf16 : CpuMatrix::Layout::kPanelsF32,
      pool_);
}

std::unique_ptr<PackedMatrix> CpuBackend::PackF32(const MatrixSource& source) {
  return CpuMatrix::Pack(source, CpuMatrix::Layout::kPanelsF32, pool_);
}

std::unique_ptr<PackedMatrix> CpuBackend::PackTable(const MatrixSource& source) {
  return CpuMatrix::Pack(
      source, dtype_ == DType::kBF16 ? CpuMatrix::Layout::kRowsBf16 : CpuMatrix::Layout::kRowsF32,
      pool_);
}

// ---- Rows ---------------------------------------------------------------------------------------

void CpuBackend::Embed(const EmbedParams& params) {
  const CpuMatrix& table = AsCpu(params.table);
  const int64_t columns = table.columns();
  for (size_t i = 0; i < params.tokens.size(); ++i) {
    SLUICE_CHECK(params.tokens[i] >= 0 && params.tokens[i] < table.rows());
    float* out = params.out + static_cast<int64_t>(i) * columns;
    const uint8_t* row = table.row(params.tokens[i]);
    if (table.layout() == CpuMatrix::Layout::kRowsF32) {
      std::memcpy(out, row, static_cast<size_t>(columns) * sizeof(float));
    } else {
      const Bf16* bf16 = reinterpret_cast<const Bf16*>(row);
      for (int64_t c = 0; c < columns; ++c) out[c] = Bf16ToFloat(bf16[c]);
    }
  }
}

void CpuBackend::RmsNorm(const RmsNormParams& params) {
  ForRows(params.rows, /*grain=*/16, [&](int begin, int end) {
    for (int r = begin; r < end; ++r) {
      const int64_t source = params.row_index != nullptr ? params.row_index[r] : r;
      void* out = RowAt(params.out->data(), r, params.out->stride(), dtype_);
      float* f32 = params.out_f32 != nullptr ? params.out_f32 + r * params.columns : nullptr;
      const float* x = params.x + source * params.x_stride;
      if (dtype_ == DType::kBF16) {
        kernels_.rms_norm(x, params.weight, params.eps, params.columns, f32,
                          static_cast<uint16_t*>(out));
        continue;
      }
      kernels_.rms_norm(x, params.weight, params.eps, params.columns, static_cast<float*>(out),
                        nullptr);
      if (f32 != nullptr) {
        std::memcpy(f32, out, static_cast<size_t>(params.columns) * sizeof(float));
      }
    }
  });
}

void CpuBackend::RopeWriteKv(const RopeWriteKvParams& params) {
  const int64_t half = params.rope_dim / 2;
  const int64_t head_dim = params.nope_dim + params.rope_dim;
  const auto convert = [this](const float* x, void* y, int64_t n) {
    if (dtype_ == DType::kBF16) {
      kernels_.scale_bf16(x, 1.0f, static_cast<uint16_t*>(y), n);
    } else {
      std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float));
    }
  };
  ForRows(params.rows, /*grain=*/8, [&](int begin, int end) {
    constexpr int64_t kMaxRope = 512;
    float rotated[kMaxRope];
    SLUICE_CHECK(params.rope_dim <= kMaxRope);
    for (int r = begin; r < end; ++r) {
      const float* cos = params.cos + r * half;
      const float* sin = params.sin + r * half;
      // Consecutive pairs, as the checkpoints order them.
      const auto rotate = [&](const float* x) {
        for (int64_t i = 0; i < half; ++i) {
          rotated[2 * i] = x[2 * i] * cos[i] - x[2 * i + 1] * sin[i];
          rotated[2 * i + 1] = x[2 * i] * sin[i] + x[2 * i + 1] * cos[i];
        }
      };
      for (int h = 0; h < params.heads; ++h) {
        const float* q = params.q + r * params.q_stride + h * head_dim;
        const int64_t part = int64_t{r} * params.heads + h;
        convert(q, RowAt(params.q_nope->data(), part, params.q_nope->part_stride(), dtype_),
                params.nope_dim);
        rotate(q + params.nope_dim);
        uint8_t* full = static_cast<uint8_t*>(
            RowAt(params.q_full->data(), part, params.q_full->part_stride(), dtype_));
        convert(rotated, full + params.latent_dim * DTypeBytes(dtype_), params.rope_dim);
      }
      const float* kv = params.kv + r * params.kv_stride;
      const int64_t slot = params.slots[static_cast<size_t>(r)];
      const KvLayerView& cache = params.kv_cache;
      uint8_t* row = cache.base + slot / cache.block_tokens * cache.block_bytes +
                     slot % cache.block_tokens * cache.row_dim * DTypeBytes(dtype_);
      kernels_.rms_norm(kv, params.kv_norm, params.eps, params.latent_dim,
                        dtype_ == DType::kF32 ? reinterpret_cast<float*>(row) : nullptr,
                        dtype_ == DType::kBF16 ? reinterpret_cast<uint16_t*>(row) : nullptr);
      rotate(kv + params.latent_dim);
      convert(rotated, row + params.latent_dim * DTypeBytes(dtype_), params.rope_dim);
    }
  });
}

// ---- Matrix products ----------------------------------------------------------------------------

// Rectangles: rows that stay in the second level of cache, and columns in whole register tiles (4
// panels of a few rows, 3 of many), in shares that shrink.
void CpuBackend::PlanLinear(int64_t rows, int64_t panels) {
  constexpr int64_t kRowsPerTask = 256;
  const int64_t unit = rows <= 16 ? 4 : 3;
  const int64_t units = CeilDiv(panels, unit);
  int64_t left = CeilDiv(rows, kRowsPerTask) * units;
  linear_tasks_.clear();
  for (int64_t row = 0; row < rows; row += kRowsPerTask) {
    for (int64_t first = 0; first < units;) {
      const int64_t share = std::min(NextShare(left, pool_.num_threads()), units - first);
      linear_tasks_.push_back(
          {row, std::min(kRowsPerTask, rows - row), first * unit, share * unit});
      first += share;
      left -= share;
    }
  }
}

void CpuBackend::Linear(const LinearParams& params) {
  const CpuMatrix& weight = AsCpu(params.weight);
  const DType dtype = weight.layout() == CpuMatrix::Layout::kPanelsF32 ? DType::kF32 : DType::kBF16;
  SLUICE_CHECK(dtype == params.x->dtype() && params.x->stride() >= weight.k());
  PlanLinear(params.rows, weight.num_panels());
  pool_.ParallelFor(static_cast<int>(linear_tasks_.size()), [&](int index, int) {
    const LinearTask& task = linear_tasks_[static_cast<size_t>(index)];
    const int64_t column = task.first_panel * kPanelColumns;
    GemmArgs args;
    args.a = RowAt(params.x->data(), task.first_row, params.x->stride(), dtype);
    args.a_stride = params.x->stride();
    args.rows = static_cast<int>(task.num_rows);
    args.b = weight.panel(task.first_panel);
    args.k = weight.k();
    args.columns = std::min(weight.rows() - column, task.num_panels * kPanelColumns);
    args.c = params.y + task.first_row * params.y_stride + column;
    args.c_stride = params.y_stride;
    args.epilogue = params.accumulate ? Epilogue::kAddF32 : Epilogue::kStoreF32;
    Gemm(args, dtype);
  });
}

void CpuBackend::HeadLinear(const HeadLinearParams& params) {
  const int64_t heads = static_cast<int64_t>(params.weights.size());
  constexpr int64_t kRowsPerTask = 256;
  const int64_t row_chunks = CeilDiv(params.rows, kRowsPerTask);
  pool_.ParallelFor(static_cast<int>(row_chunks * heads), [&](int task, int) {
    const int64_t head = task % heads;
    const int64_t row = task / heads * kRowsPerTask;
    const CpuMatrix& weight = AsCpu(params.weights[static_cast<size_t>(head)].get());
    const int64_t element = DTypeBytes(dtype_);
    GemmArgs args;
    args.a = static_cast<const uint8_t*>(params.x->data()) +
             (row * params.x->stride() + head * params.x->part_stride()) * element;
    args.a_stride = params.x->stride();
    args.rows = static_cast<int>(std::min(kRowsPerTask, params.rows - row));
    args.b = weight.panel(0);
    args.k = weight.k();
    args.columns = weight.rows();
    args.c = static_cast<uint8_t*>(params.y->data()) +
             (row * params.y->stride() + head * params.y_head_stride) * element;
    args.c_stride = params.y->stride();
    args.epilogue = dtype_ == DType::kBF16 ? Epilogue::kStoreBf16 : Epilogue::kStoreF32;
    Gemm(args, dtype_);
  });
}

// ---- Router -------------------------------------------------------------------------------------

void CpuBackend::Gate(const GateParams& params) {
  const ModelSpec& spec = *params.spec;
  const CpuMatrix& weight = AsCpu(params.weight);
  const int64_t n = spec.n_routed_experts;
  const int64_t k = spec.num_experts_per_tok;
  const int64_t scratch_per_row = 2 * n + spec.n_group;  // scores, biased scores, group scores
  router_scratch_.Reserve(static_cast<size_t>(scratch_per_row * params.rows) * sizeof(float));
  float* const scratch = router_scratch_.as<float>();
  const bool softmax =
      spec.gate == GateKind::kSoftmaxGreedy || spec.gate == GateKind::kSoftmaxGroupLimited;
  ForRows(params.rows, /*grain=*/8, [&](int begin, int end) {
    GemmArgs args;
    args.a = params.x + begin * weight.columns();
    args.a_stride = weight.columns();
    args.rows = end - begin;
    args.b = weight.panel(0);
    args.k = weight.k();
    args.columns = n;
    args.c = scratch + begin * scratch_per_row;
    args.c_stride = scratch_per_row;
    Gemm(args, DType::kF32);
    for (int r = begin; r < end; ++r) {
      float* scores = scratch + r * scratch_per_row;
      (softmax ? kernels_.softmax : kernels_.sigmoid)(scores, n);
      SelectExperts(spec, scores, params.bias, scores + n, scores + 2 * n, params.experts + r * k,
                    params.weights + r * k);
    }
  });
}

}  // namespace sluice
