#include "cli/write_manifest.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/available_memory.h"
#include "common/processors.h"
#include "common/progress_bar.h"
#include "common/status_macros.h"
#include "engine/runtime/answer_check.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/memory_fit.h"
#include "engine/weights/checkpoint_digest.h"
#include "engine/weights/manifest.h"
#include "modelspec/model_spec.h"
#include "tokenizer/tokenizer.h"

namespace sluice::cli {
namespace {

constexpr char kGoldenText[] = "Once upon a time there was a small river. It came from";
// Above what the other precision was seen to deviate by, for processors that were not seen.
constexpr double kToleranceMargin = 4;

// Packed weights, and as much again for what packing and a batch need beside them, within reason.
bool FitsInMemory(const ModelSpec& spec, DType dtype) {
  const absl::StatusOr<int64_t> available = AvailableMemoryBytes();
  return available.ok() &&
         CheckWeightsFit(WeightBytes(spec, dtype) + (int64_t{1} << 30), *available).ok();
}

absl::StatusOr<std::unique_ptr<Engine>> LoadEngine(const std::string& model_dir,
                                                   const ModelSpec& spec,
                                                   const Tokenizer* tokenizer, DType dtype) {
  EngineOptions options;
  options.model_dir = model_dir;
  options.dtype = dtype;
  options.num_kv_blocks = 2;
  options.scheduler.max_model_len =
      static_cast<int>(std::min<int64_t>(2 * kBlockTokens, spec.max_position_embeddings));
  if (tokenizer != nullptr) {
    options.sampleable_vocab_size = std::min<int64_t>(tokenizer->vocab_size(), spec.vocab_size);
  }
  options.verify_weights = false;  // the manifest that may be there is about to be replaced
  options.check_answers = false;
  const std::string what = absl::StrCat("loading as ", DTypeName(dtype));
  options.on_load_progress = [what](double progress) { ShowProgress(what, progress); };
  return Engine::Create(options);
}

absl::Status AddGoldenAnswer(const std::string& model_dir, Manifest* manifest) {
  SLUICE_ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(model_dir));
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(model_dir);
  if (!tokenizer.ok() && !absl::IsNotFound(tokenizer.status())) return tokenizer.status();
  const Tokenizer* const known_tokenizer = tokenizer.ok() ? tokenizer->get() : nullptr;

  std::vector<TokenId> prompt;
  if (known_tokenizer != nullptr) {
    prompt = known_tokenizer->EncodePrompt(kGoldenText);
    if (prompt.size() > kMaxGoldenPromptTokens) prompt.resize(kMaxGoldenPromptTokens);
  } else {
    prompt = SyntheticGoldenPrompt(spec.vocab_size, kMaxGoldenPromptTokens);
  }

  const bool as_f32 = FitsInMemory(spec, DType::kF32);
  if (!as_f32 && !FitsInMemory(spec, DType::kBF16)) {
    std::cerr << "not enough memory to run the model: the manifest gets no golden answer\n";
    return absl::OkStatus();
  }
  {
    SLUICE_ASSIGN_OR_RETURN(
        const std::unique_ptr<Engine> engine,
        LoadEngine(model_dir, spec, known_tokenizer, as_f32 ? DType::kF32 : DType::kBF16));
    SLUICE_ASSIGN_OR_RETURN(manifest->golden, MakeGoldenAnswer(engine.get(), prompt));
    manifest->has_golden = true;
  }
  GoldenAnswer& golden = manifest->golden;
  if (!as_f32) {
    std::cerr << "not enough memory to run the model as f32: the golden answer is that of bf16\n";
    golden.tolerance_bf16 *= kToleranceMargin;
    golden.tolerance_f32 = golden.tolerance_bf16;
    return absl::OkStatus();
  }
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                          LoadEngine(model_dir, spec, known_tokenizer, DType::kBF16));
  SLUICE_ASSIGN_OR_RETURN(const double deviation, LargestDeviation(engine.get(), golden));
  golden.tolerance_bf16 = std::max(golden.tolerance_bf16, kToleranceMargin * deviation);
  return CheckGoldenAnswer(engine.get(), golden);
}

}  // namespace

absl::Status WriteModelManifest(const std::string& model_dir) {
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                          Checkpoint::Open(model_dir));
  SLUICE_ASSIGN_OR_RETURN(Manifest manifest,
                          DigestCheckpoint(*checkpoint, AvailableProcessors(), [](double progress) {
                            ShowProgress("hashing", progress);
                          }));
  SLUICE_RETURN_IF_ERROR(AddGoldenAnswer(model_dir, &manifest));
  SLUICE_RETURN_IF_ERROR(WriteManifest(model_dir, manifest));
  size_t num_tensors = 0;
  for (const ManifestShard& shard : manifest.shards) num_tensors += shard.tensor_sha256.size();
  std::cout << model_dir << "/" << kManifestFile << ": " << manifest.shards.size() << " shards, "
            << num_tensors << " tensors, "
            << (manifest.has_golden
                    ? absl::StrFormat("golden answer of %d tokens (bf16 within %.3f)",
                                      manifest.golden.output.size(), manifest.golden.tolerance_bf16)
                    : "no golden answer")
            << "\n";
  return absl::OkStatus();
}

}  // namespace sluice::cli
