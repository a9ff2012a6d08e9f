#include <openssl/evp.h>

#include <fstream>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "engine/weights/checkpoint.h"

namespace sluice {
namespace {

constexpr uint64_t kWholeFileBytes = uint64_t{256} << 20;
constexpr uint64_t kSampleBytes = 64 << 10;
constexpr uint64_t kNumSamples = 256;

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new()) {
    SLUICE_CHECK(context_ != nullptr && EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) == 1);
  }
  ~Sha256() { EVP_MD_CTX_free(context_); }
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(const void* data, size_t size) {
    SLUICE_CHECK(EVP_DigestUpdate(context_, data, size) == 1);
  }
  // With its length before it, so that parts cannot run into each other.
  void AddPart(absl::string_view part) {
    const std::string length = absl::StrCat(part.size(), ":");
    Add(length.data(), length.size());
    Add(part.data(), part.size());
  }
  std::string Hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    SLUICE_CHECK(EVP_DigestFinal_ex(context_, digest, &size) == 1);
    return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
  }

 private:
  EVP_MD_CTX* const context_;
};

}  // namespace

absl::StatusOr<std::string> ModelDigest(const Checkpoint& checkpoint) {
  const std::string config_path = absl::StrCat(checkpoint.model_dir(), "/config.json");
  std::ifstream config(config_path, std::ios::binary);
  if (!config) return absl::NotFoundError(absl::StrCat(config_path, ": cannot be read"));
  std::ostringstream config_text;
  config_text << config.rdbuf();

  Sha256 sha;
  sha.AddPart(config_text.str());
  for (const auto& file : checkpoint.files()) {  // sorted by name, see Checkpoint
    sha.AddPart(file->header());
    if (file->tensors().empty()) continue;
    const uint8_t* const data = file->Data(file->tensors().front());
    const uint64_t size = file->tensors().back().end;
    if (size <= kWholeFileBytes) {
      sha.Add(data, size);
      continue;
    }
    for (uint64_t i = 0; i < kNumSamples; ++i) {
      sha.Add(data + (size - kSampleBytes) / (kNumSamples - 1) * i, kSampleBytes);
    }
  }
  return sha.Hex();
}

}  // namespace sluice
