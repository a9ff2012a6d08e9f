#include "engine/weights/sha256.h"

#include <openssl/evp.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace sluice {
namespace {

EVP_MD_CTX* Context(void* context) { return static_cast<EVP_MD_CTX*>(context); }

}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  SLUICE_CHECK(context_ != nullptr &&
               EVP_DigestInit_ex(Context(context_), EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() { EVP_MD_CTX_free(Context(context_)); }

void Sha256::Add(const void* data, size_t size_bytes) {
  SLUICE_CHECK(EVP_DigestUpdate(Context(context_), data, size_bytes) == 1);
}

void Sha256::AddPart(absl::string_view part) {
  const std::string length = absl::StrCat(part.size(), ":");
  Add(length.data(), length.size());
  Add(part.data(), part.size());
}

std::string Sha256::Hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size_bytes = 0;
  SLUICE_CHECK(EVP_DigestFinal_ex(Context(context_), digest, &size_bytes) == 1);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), size_bytes));
}

std::string Sha256Hex(absl::string_view bytes) {
  Sha256 sha;
  sha.Add(bytes.data(), bytes.size());
  return sha.Hex();
}

}  // namespace sluice
