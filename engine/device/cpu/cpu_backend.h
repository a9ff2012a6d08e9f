// The CPU backend: complete, and the truth that other devices are compared with. Owns its threads
// and scratch memory. Loops are cut into tasks for the pool; the cut decides who computes an
// element, never how (see kernels.h).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/device/backend.h"
#include "engine/device/cpu/isa.h"
#include "engine/device/cpu/packed_matrix.h"
#include "engine/device/thread_pool.h"

namespace sluice {

class CpuBackend final : public Backend {
 public:
  // REQUIRES: IsaAvailable(isa). `num_threads` 0: all processors this process may use; `niceness`
  // of those beside the caller.
  CpuBackend(DType dtype, Isa isa, int num_threads, int niceness = 0);

  DType dtype() const override { return dtype_; }
  std::string kernel_family() const override;
  int num_threads() const override { return pool_.num_threads(); }
  void ParallelFor(int num_tasks, absl::FunctionRef<void(int task, int worker)> fn) override {
    pool_.ParallelFor(num_tasks, fn);
  }

  std::unique_ptr<PackedMatrix> Pack(const MatrixSource& source) override;
  std::unique_ptr<PackedMatrix> PackGateUp(const MatrixSource& gate,
                                           const MatrixSource& up) override;
  std::unique_ptr<PackedMatrix> PackF32(const MatrixSource& source) override;
  std::unique_ptr<PackedMatrix> PackTable(const MatrixSource& source) override;

  void Embed(const EmbedParams& params) override;
  void RmsNorm(const RmsNormParams& params) override;
  void Linear(const LinearParams& params) override;
  void HeadLinear(const HeadLinearParams& params) override;
  void RopeWriteKv(const RopeWriteKvParams& params) override;
  void MlaAttention(const MlaAttentionParams& params) override;
  void Gate(const GateParams& params) override;
  void FeedForward(const FeedForwardParams& params) override;

 private:
  // Up to kMaxAttentionRows consecutive (token, head) rows of one sequence.
  struct AttentionGroup {
    const AttentionSequence* sequence = nullptr;
    int first_row = 0;  // within the sequence: token * heads + head
    int num_rows = 0;
    int num_partitions = 0;
  };
  // Consecutive partitions of a group, computed one after another by one thread.
  struct PartitionRun {
    int begin = 0;
    int end = 0;
  };
  struct SplitRun {
    int group = 0;  // index in attention_groups_
    PartitionRun run;
  };
  struct Partial {
    float* out;  // [rows, out_stride]
    float* max;  // [rows]
    float* sum;  // [rows]
  };
  // Rows of one expert (or of the shared network) within FeedForward's gathered rows.
  struct FeedForwardTask {
    const FeedForwardWeights* weights = nullptr;
    const void* x = nullptr;  // first row
    int64_t x_stride = 0;
    void* hidden = nullptr;  // first row
    int64_t hidden_stride = 0;
    int num_rows = 0;
    int64_t first_pair = 0;  // of panels: gate and up
    int64_t num_pairs = 0;
  };
  struct ExpertRows {
    const FeedForwardWeights* weights = nullptr;
    int first_row = 0;  // in the gathered order
    int num_rows = 0;
  };
  // A rectangle of Linear's result.
  struct LinearTask {
    int64_t first_row = 0;
    int64_t num_rows = 0;
    int64_t first_panel = 0;
    int64_t num_panels = 0;  // the last may reach beyond the matrix
  };
  // Consecutive panels of the down projections.
  struct PanelRange {
    int64_t begin = 0;
    int64_t end = 0;
  };

  // fn(begin, end) over [0, rows), cut into tasks of at least `grain` rows.
  void ForRows(int rows, int grain, absl::FunctionRef<void(int begin, int end)> fn);
  void Gemm(const cpu::GemmArgs& args, DType dtype) const;

  void PlanLinear(int64_t rows, int64_t panels);

  void PlanAttention(const MlaAttentionParams& params);
  static int TokensOfPartition(const AttentionGroup& group, int partition, int heads);
  void AttendPartition(const MlaAttentionParams& params, const AttentionGroup& group,
                       PartitionRun run, int partition, int worker, const Partial& result);
  void AttendGroup(const MlaAttentionParams& params, const AttentionGroup& group, int worker);
  void AttendSplit(const MlaAttentionParams& params);
  void StoreAttentionRow(const MlaAttentionParams& params, int64_t row, const float* sum_of_values,
                         float sum);

  void GroupRowsByExpert(const FeedForwardParams& params);
  // Takes the tasks' work off `work_left`.
  void AddHiddenTasks(const FeedForwardWeights& weights, const void* x, int64_t x_stride,
                      Activations& hidden, int first_row, int num_rows, int64_t& work_left);
  void PlanDown(int64_t panels);
  void RunHiddenTask(const FeedForwardTask& task, int worker);
  Activations& HiddenBuffer(int64_t columns, bool shared, int64_t rows);

  const DType dtype_;
  const Isa isa_;
  const cpu::Kernels& kernels_;
  ThreadPool pool_;

  // Scratch, kept between calls so that a decode step allocates nothing.
  std::vector<Buffer> worker_scratch_;  // [num_threads]
  std::vector<LinearTask> linear_tasks_;
  std::vector<AttentionGroup> attention_groups_;
  std::vector<int> split_offsets_;  // first partial of each group
  std::vector<SplitRun> split_runs_;
  Buffer partials_;
  Buffer router_scratch_;
  std::vector<ExpertRows> expert_rows_;
  std::vector<int32_t> gathered_token_;  // [rows * experts_per_token] token of each gathered row
  std::vector<float> gathered_weight_;
  std::vector<int> expert_cursor_;
  std::map<int64_t, Activations> gathered_x_;               // by columns
  std::map<std::pair<int64_t, bool>, Activations> hidden_;  // by (columns, shared)
  std::vector<FeedForwardTask> hidden_tasks_;
  std::vector<PanelRange> down_tasks_;
};

}  // namespace sluice
