// MlaAttention of the CPU backend: which thread attends to what.
#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "engine/device/cpu/cpu_backend.h"

namespace sluice {
namespace {

using cpu::AttentionArgs;
using cpu::kMaxAttentionRows;
using cpu::kPartitionTokens;

// One worker's scratch, cut from a single buffer.
struct Scratch {
  uint8_t* kernel;
  float* out;       // [kMaxAttentionRows, out_stride] a partition's result
  float* running;   // [kMaxAttentionRows, out_stride]
  float* max;       // [kMaxAttentionRows], then the running one
  float* sum;       // [kMaxAttentionRows], then the running one
  int32_t* last;    // [kMaxAttentionRows]
  uint8_t* padded;  // [kPartitionTokens, q_stride] cache rows, if they need padding
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t Align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

Scratch CutScratch(Buffer& buffer, int64_t kernel_bytes, int64_t out_stride, int64_t padded_bytes) {
  const int64_t kernel = Align64(kernel_bytes);
  const int64_t rows =
      Align64(kMaxAttentionRows * out_stride * static_cast<int64_t>(sizeof(float)));
  const int64_t scalars = Align64(2 * kMaxAttentionRows * static_cast<int64_t>(sizeof(float)));
  buffer.Reserve(static_cast<size_t>(kernel + 2 * rows + 3 * scalars + padded_bytes));
  uint8_t* p = buffer.as<uint8_t>();
  Scratch scratch;
  scratch.kernel = p;
  scratch.out = reinterpret_cast<float*>(p += kernel);
  scratch.running = reinterpret_cast<float*>(p += rows);
  scratch.max = reinterpret_cast<float*>(p += rows);
  scratch.sum = reinterpret_cast<float*>(p += scalars);
  scratch.last = reinterpret_cast<int32_t*>(p += scalars);
  scratch.padded = p + scalars;
  return scratch;
}

// Addresses of the blocks that hold the first `num_tokens` of a partition.
void FindBlocks(const KvLayerView& cache, const AttentionSequence& sequence, int partition,
                int num_tokens, const void** bases) {
  SLUICE_CHECK(kPartitionTokens % cache.block_tokens == 0);
  const int64_t first_block = int64_t{partition} * kPartitionTokens / cache.block_tokens;
  for (int64_t b = 0; b * cache.block_tokens < num_tokens; ++b) {
    const BlockId block = sequence.block_table[static_cast<size_t>(first_block + b)];
    bases[b] = cache.base + int64_t{block.value} * cache.block_bytes;
  }
}

}  // namespace

// Up to the last that any row of the group may see.
int CpuBackend::TokensOfPartition(const AttentionGroup& group, int partition, int heads) {
  const int last = group.sequence->start_position + (group.first_row + group.num_rows - 1) / heads;
  return std::min(kPartitionTokens, last + 1 - partition * kPartitionTokens);
}

void CpuBackend::PlanAttention(const MlaAttentionParams& params) {
  attention_groups_.clear();
  for (const AttentionSequence& sequence : params.sequences) {
    const int rows = sequence.num_tokens * params.heads;
    for (int row = 0; row < rows; row += kMaxAttentionRows) {
      AttentionGroup group;
      group.sequence = &sequence;
      group.first_row = row;
      group.num_rows = std::min(kMaxAttentionRows, rows - row);
      const int last = sequence.start_position + (row + group.num_rows - 1) / params.heads;
      group.num_partitions = last / kPartitionTokens + 1;
      attention_groups_.push_back(group);
    }
  }
}

void CpuBackend::AttendPartition(const MlaAttentionParams& params, const AttentionGroup& group,
                                 PartitionRun run, int partition, int worker,
                                 const Partial& result) {
  const KvLayerView& cache = params.kv_cache;
  const AttentionSequence& sequence = *group.sequence;
  const int64_t element = DTypeBytes(dtype_);
  const int64_t q_stride = params.q->part_stride();
  const bool pad = cache.row_dim != q_stride;
  const int64_t out_stride = params.out->part_stride();
  const Scratch scratch = CutScratch(worker_scratch_[static_cast<size_t>(worker)],
                                     kernels_.attention_scratch_bytes(q_stride, params.latent_dim),
                                     out_stride, pad ? kPartitionTokens * q_stride * element : 0);

  AttentionArgs args;
  const int64_t first_row = int64_t{sequence.first_row} * params.heads + group.first_row;
  args.q = static_cast<const uint8_t*>(params.q->data()) + first_row * q_stride * element;
  args.q_stride = q_stride;
  args.rows = group.num_rows;
  for (int r = 0; r < group.num_rows; ++r) {
    scratch.last[r] = sequence.start_position + (group.first_row + r) / params.heads;
  }
  args.last = scratch.last;
  args.first_token = partition * kPartitionTokens;
  args.num_tokens = TokensOfPartition(group, partition, params.heads);
  args.latent_dim = params.latent_dim;
  args.scale = params.scale;
  args.out = result.out;
  args.out_stride = out_stride;
  args.max = result.max;
  args.sum = result.sum;
  args.scratch = scratch.kernel;

  const void* bases[kPartitionTokens];
  const void* next_bases[kPartitionTokens];
  const int block_tokens = static_cast<int>(cache.block_tokens);
  FindBlocks(cache, sequence, partition, args.num_tokens, bases);
  args.row_base = bases;
  args.block_tokens = block_tokens;
  args.row_stride = cache.row_dim;
  const void* padded_base = scratch.padded;
  if (!pad && partition + 1 < run.end) {
    args.next_tokens = TokensOfPartition(group, partition + 1, params.heads);
    FindBlocks(cache, sequence, partition + 1, args.next_tokens, next_bases);
    args.next_row_base = next_bases;
  }
  if (pad) {
    const int64_t row_bytes = cache.row_dim * element;
    for (int t = 0; t < args.num_tokens; ++t) {
      uint8_t* row = scratch.padded + t * q_stride * element;
      std::memcpy(
          row, static_cast<const uint8_t*>(bases[t / block_tokens]) + t % block_tokens * row_bytes,
          static_cast<size_t>(row_bytes));
      std::memset(row + row_bytes, 0, static_cast<size_t>(q_stride * element - row_bytes));
    }
    args.row_base = &padded_base;
    args.block_tokens = kPartitionTokens;
    args.row_stride = q_stride;
  }
  args.same_queries = partition > run.begin;
  (dtype_ == DType::kBF16 ? kernels_.attention_bf16 : kernels_.attention_f32)(args);
}

void CpuBackend::StoreAttentionRow(const MlaAttentionParams& params, int64_t row,
                                   const float* sum_of_values, float sum) {
  const int64_t stride = params.out->part_stride();
  const float factor = 1.0f / sum;
  if (dtype_ == DType::kBF16) {
    kernels_.scale_bf16(sum_of_values, factor,
                        static_cast<uint16_t*>(params.out->data()) + row * stride,
                        params.latent_dim);
  } else {
    kernels_.scale_f32(sum_of_values, factor,
                       static_cast<float*>(params.out->data()) + row * stride, params.latent_dim);
  }
}

// All partitions of a group by one thread.
void CpuBackend::AttendGroup(const MlaAttentionParams& params, const AttentionGroup& group,
                             int worker) {
  const int64_t stride = params.out->part_stride();
  const int64_t q_stride = params.q->part_stride();
  const Scratch scratch = CutScratch(
      worker_scratch_[static_cast<size_t>(worker)],
      kernels_.attention_scratch_bytes(q_stride, params.latent_dim), stride,
      params.kv_cache.row_dim != q_stride ? kPartitionTokens * q_stride * DTypeBytes(dtype_) : 0);
  float* const running_max = scratch.max + kMaxAttentionRows;
  float* const running_sum = scratch.sum + kMaxAttentionRows;
  // The first partition is visible to every row: it starts the running result.
  const PartitionRun all{0, group.num_partitions};
  AttendPartition(params, group, all, 0, worker, {scratch.running, running_max, running_sum});
  for (int partition = 1; partition < group.num_partitions; ++partition) {
    AttendPartition(params, group, all, partition, worker, {scratch.out, scratch.max, scratch.sum});
    for (int r = 0; r < group.num_rows; ++r) {
      kernels_.attention_merge(scratch.running + r * stride, &running_max[r], &running_sum[r],
                               scratch.out + r * stride, scratch.max[r], scratch.sum[r],
                               params.latent_dim);
    }
  }
  const int64_t first_row = int64_t{group.sequence->first_row} * params.heads + group.first_row;
  for (int r = 0; r < group.num_rows; ++r) {
    StoreAttentionRow(params, first_row + r, scratch.running + r * stride, running_sum[r]);
  }
}

// Few groups and long contexts (decode): runs of partitions in parallel, every partition's result
// kept, and all merged afterwards in the same order. So neither the number of threads nor the cut
// into runs changes a bit.
void CpuBackend::AttendSplit(const MlaAttentionParams& params) {
  const int64_t stride = params.out->part_stride();
  split_offsets_.clear();
  int total = 0;
  for (const AttentionGroup& group : attention_groups_) {
    split_offsets_.push_back(total);
    total += group.num_partitions;
  }
  // A run arranges its queries once; two a thread even out what others take.
  const int run_length = static_cast<int>(CeilDiv(total, int64_t{2} * pool_.num_threads()));
  split_runs_.clear();
  for (size_t g = 0; g < attention_groups_.size(); ++g) {
    const int partitions = attention_groups_[g].num_partitions;
    for (int begin = 0; begin < partitions; begin += run_length) {
      split_runs_.push_back(
          {static_cast<int>(g), {begin, std::min(partitions, begin + run_length)}});
    }
  }
  const int64_t partial_floats = kMaxAttentionRows * (stride + 2);
  partials_.Reserve(static_cast<size_t>(total * partial_floats) * sizeof(float));
  const auto partial = [&](int index) {
    float* base = partials_.as<float>() + index * partial_floats;
    return Partial{base, base + kMaxAttentionRows * stride,
                   base + kMaxAttentionRows * (stride + 1)};
  };
  pool_.ParallelFor(static_cast<int>(split_runs_.size()), [&](int task, int worker) {
    const SplitRun& split = split_runs_[static_cast<size_t>(task)];
    const size_t g = static_cast<size_t>(split.group);
    for (int p = split.run.begin; p < split.run.end; ++p) {
      AttendPartition(params, attention_groups_[g], split.run, p, worker,
                      partial(split_offsets_[g] + p));
    }
  });
  for (size_t g = 0; g < attention_groups_.size(); ++g) {
    const AttentionGroup& group = attention_groups_[g];
    const int64_t first_row = int64_t{group.sequence->first_row} * params.heads + group.first_row;
    const Partial running = partial(split_offsets_[g]);
    ForRows(group.num_rows, /*grain=*/2, [&](int begin, int end) {
      for (int r = begin; r < end; ++r) {
        for (int p = 1; p < group.num_partitions; ++p) {
          const Partial next = partial(split_offsets_[g] + p);
          kernels_.attention_merge(running.out + r * stride, &running.max[r], &running.sum[r],
                                   next.out + r * stride, next.max[r], next.sum[r],
                                   params.latent_dim);
        }
        StoreAttentionRow(params, first_row + r, running.out + r * stride, running.sum[r]);
      }
    });
  }
}

void CpuBackend::MlaAttention(const MlaAttentionParams& params) {
  PlanAttention(params);
  const int groups = static_cast<int>(attention_groups_.size());
  int64_t partitions = 0;
  for (const AttentionGroup& group : attention_groups_) partitions += group.num_partitions;
  const int64_t partial_bytes = partitions * kMaxAttentionRows * (params.out->part_stride() + 2) *
                                static_cast<int64_t>(sizeof(float));
  if (groups < 2 * pool_.num_threads() && partitions > groups &&
      partial_bytes <= cpu::kMaxAttentionPartialBytes) {
    AttendSplit(params);
    return;
  }
  // Backwards, since later tokens see more: the long tasks come first.
  pool_.ParallelFor(groups, [&](int task, int worker) {
    AttendGroup(params, attention_groups_[static_cast<size_t>(groups - 1 - task)], worker);
  });
}

}  // namespace sluice
