// Engine::Create: from a model folder and options to an engine that can run, or to an error that
// says which stage refused and why.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "common/available_memory.h"
#include "common/log.h"
#include "common/processors.h"
#include "common/status_macros.h"
#include "engine/device/cpu/isa.h"
#include "engine/model/deepseek_model.h"
#include "engine/model/deepseek_weights.h"
#include "engine/runtime/answer_check.h"
#include "engine/runtime/engine_impl.h"
#include "engine/runtime/kv_sizing.h"
#include "engine/runtime/memory_fit.h"
#include "engine/weights/manifest.h"

namespace sluice {
namespace {

// What a worker with a small model needs to be ready, and others that start beside it: their
// processors are not taken for memory that is needed later.
constexpr absl::Duration kStartTime = absl::Seconds(1);

// Everything that can be refused before the weights are read.
absl::StatusOr<ModelSpec> CheckOptions(const EngineOptions& options) {
  SLUICE_RETURN_IF_ERROR(options.scheduler.Validate());
  SLUICE_ASSIGN_OR_RETURN(ModelSpec spec, LoadModelSpec(options.model_dir));
  if (options.scheduler.max_model_len > spec.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat(
        "scheduler.max_model_len (", options.scheduler.max_model_len,
        ") exceeds the model's max_position_embeddings (", spec.max_position_embeddings, ")"));
  }
  if (options.sampleable_vocab_size < 0 || options.sampleable_vocab_size > spec.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampleable_vocab_size (", options.sampleable_vocab_size,
                     ") exceeds the model's vocab_size (", spec.vocab_size, ")"));
  }
  if (options.num_kv_blocks < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_kv_blocks must not be negative: ", options.num_kv_blocks));
  }
  return spec;
}

absl::StatusOr<KvSizing> SizeFromFreeMemory(const EngineOptions& options, const ModelSpec& spec,
                                            const KvLayout& layout, int64_t available_bytes) {
  KvSizingInput sizing;
  sizing.block_bytes = layout.block_bytes();
  sizing.available_bytes = available_bytes;
  sizing.max_position_embeddings = spec.max_position_embeddings;
  sizing.num_kv_blocks = options.num_kv_blocks;
  sizing.kv_cache_bytes = static_cast<int64_t>(options.kv_cache_bytes);
  sizing.max_model_len = options.scheduler.max_model_len;
  return SizeKvCache(sizing);
}

// What steps need is not the KV cache's: it is taken by the first large one, long after the start.
int64_t StepBytesOf(const EngineOptions& options, const ModelSpec& spec) {
  const int num_threads = options.num_threads > 0 ? options.num_threads : AvailableProcessors();
  return StepBytes(spec, options.dtype, options.scheduler, num_threads);
}

// What would be refused after the weights are read, minutes later.
absl::Status CheckMemory(const EngineOptions& options, const ModelSpec& spec,
                         const KvLayout& layout) {
  SLUICE_ASSIGN_OR_RETURN(const int64_t available_bytes, AvailableMemoryBytes());
  const int64_t weight_bytes = WeightBytes(spec, options.dtype);
  SLUICE_RETURN_IF_ERROR(CheckWeightsFit(weight_bytes, available_bytes));
  const int64_t step_bytes = StepBytesOf(options, spec);
  return Annotate(
      SizeFromFreeMemory(options, spec, layout,
                         std::max<int64_t>(0, available_bytes - weight_bytes - step_bytes))
          .status(),
      absl::StrFormat("beside the weights and %.1f GB for steps of %d tokens",
                      static_cast<double>(step_bytes) / 1e9,
                      options.scheduler.max_num_batched_tokens));
}

// Null: the folder has no manifest.
absl::StatusOr<std::unique_ptr<Manifest>> FindManifest(const EngineOptions& options) {
  if (!options.verify_weights && !options.check_answers) return nullptr;
  absl::StatusOr<Manifest> manifest = ReadManifest(options.model_dir);
  if (absl::IsNotFound(manifest.status())) return nullptr;
  SLUICE_RETURN_IF_ERROR(manifest.status());
  if (options.verify_weights) {
    SLUICE_RETURN_IF_ERROR(CheckFilesAgainstManifest(options.model_dir, *manifest));
  }
  return std::make_unique<Manifest>(*std::move(manifest));
}

absl::Status CheckAnswers(Engine* engine, const Manifest* manifest) {
  return manifest != nullptr && manifest->has_golden
             ? Annotate(CheckGoldenAnswer(engine, manifest->golden), "golden prompt")
             : Annotate(CheckSelfConsistency(engine), "self-check");
}

absl::StatusOr<EngineParts> Assemble(const EngineOptions& options, const Manifest* manifest) {
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, CheckOptions(options));
  SLUICE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa(options.isa));
  const KvLayout layout = MakeKvLayout(spec, options.dtype);
  SLUICE_RETURN_IF_ERROR(CheckMemory(options, spec, layout));

  DeepseekLoadOptions load;
  load.model_dir = options.model_dir;
  load.dtype = options.dtype;
  load.isa = IsaName(isa);
  load.num_threads = options.num_threads;
  load.compute_niceness = options.compute_niceness;
  load.manifest = options.verify_weights ? manifest : nullptr;
  load.on_progress = options.on_load_progress;
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<DeepseekWeights> weights,
                          LoadDeepseekWeights(spec, load));

  // After the weights, so that the share of free memory is a share of what is left.
  SLUICE_ASSIGN_OR_RETURN(const int64_t available_bytes, AvailableMemoryBytes());
  SLUICE_ASSIGN_OR_RETURN(
      const KvSizing sizing,
      SizeFromFreeMemory(options, spec, layout, available_bytes - StepBytesOf(options, spec)));
  if (options.scheduler.max_model_len == 0 && sizing.max_model_len < spec.max_position_embeddings) {
    SLUICE_LOG(Warning) << "max_model_len is lowered from the model's "
                        << spec.max_position_embeddings << " to " << sizing.max_model_len
                        << ", what " << sizing.num_blocks << " KV blocks hold";
  }

  EngineParts parts;
  parts.scheduler = options.scheduler;
  parts.scheduler.max_model_len = sizing.max_model_len;
  parts.scheduler.attention_parity_position = spec.AttentionParityPosition();
  parts.sampleable_vocab_size =
      options.sampleable_vocab_size > 0 ? options.sampleable_vocab_size : spec.vocab_size;
  parts.isa = IsaName(isa);
  parts.fingerprint =
      MakeKvFingerprint(spec, layout, weights->model_digest, weights->backend->kernel_family(),
                        parts.sampleable_vocab_size);
  SLUICE_ASSIGN_OR_RETURN(parts.kv_store, KvStore::Create(layout, sizing.num_blocks));
  parts.kv_prefault = std::make_unique<KvPrefault>(parts.kv_store->memory(), kStartTime);
  parts.model = CreateDeepseekModel(std::move(weights), parts.kv_store.get());
  return parts;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options) {
  const absl::StatusOr<std::unique_ptr<Manifest>> manifest = FindManifest(options);
  if (!manifest.ok()) return Annotate(manifest.status(), "engine");
  absl::StatusOr<EngineParts> parts = Assemble(options, manifest->get());
  if (!parts.ok()) return Annotate(parts.status(), "engine");
  SLUICE_LOG(Info) << "engine: " << parts->kv_store->num_blocks() << " KV blocks of "
                   << parts->kv_store->layout().block_bytes() << " bytes, max_model_len "
                   << parts->scheduler.max_model_len << ", " << parts->isa << " "
                   << DTypeName(parts->kv_store->layout().dtype)
                   << (*manifest != nullptr && options.verify_weights ? ", weights verified" : "");
  auto engine = std::make_unique<EngineImpl>(*std::move(parts));
  if (options.check_answers) {
    if (absl::Status answers = CheckAnswers(engine.get(), manifest->get()); !answers.ok()) {
      return Annotate(answers, "engine");
    }
  }
  return engine;
}

}  // namespace sluice
