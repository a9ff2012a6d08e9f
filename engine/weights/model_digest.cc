#include "absl/strings/str_cat.h"
#include "common/read_file.h"
#include "common/status_macros.h"
#include "engine/weights/checkpoint.h"
#include "engine/weights/sha256.h"

namespace sluice {
namespace {

constexpr size_t kMaxConfigBytes = 4 << 20;
constexpr uint64_t kWholeFileBytes = uint64_t{256} << 20;
constexpr uint64_t kSampleBytes = 64 << 10;
constexpr uint64_t kNumSamples = 256;

}  // namespace

absl::StatusOr<std::string> ModelDigest(const Checkpoint& checkpoint) {
  const std::string config_path = absl::StrCat(checkpoint.model_dir(), "/config.json");
  SLUICE_ASSIGN_OR_RETURN(const std::string config, ReadFile(config_path, kMaxConfigBytes));

  Sha256 sha;
  sha.AddPart(config);
  for (const auto& file : checkpoint.files()) {  // sorted by name, see Checkpoint
    sha.AddPart(file->header());
    if (file->tensors().empty()) continue;
    const uint8_t* const data = file->Data(file->tensors().front());
    const uint64_t size = file->tensors().back().end;
    if (size <= kWholeFileBytes) {
      sha.Add(data, size);
      continue;
    }
    const auto sample = [&](uint64_t i) { return (size - kSampleBytes) / (kNumSamples - 1) * i; };
    file->ExpectRandomReads(true);
    for (uint64_t i = 0; i < kNumSamples; ++i) file->WillRead(sample(i), sample(i) + kSampleBytes);
    for (uint64_t i = 0; i < kNumSamples; ++i) sha.Add(data + sample(i), kSampleBytes);
    file->ExpectRandomReads(false);
  }
  return sha.Hex();
}

}  // namespace sluice
