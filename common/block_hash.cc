#include "common/block_hash.h"

#include <openssl/sha.h>

#include <cstring>
#include <string>

namespace sluice {
namespace {

BlockHash Truncated(const std::string& message) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(message.data()), message.size(), digest);
  BlockHash hash;
  std::memcpy(hash.bytes.data(), digest, hash.bytes.size());
  return hash;
}

}  // namespace

BlockHash RootBlockHash(absl::string_view model_fingerprint, absl::string_view tenant_salt) {
  // Lengths first, so that ("ab", "c") and ("a", "bc") differ.
  return Truncated(absl::StrCat("sluice-block-root-v1:", model_fingerprint.size(), ":",
                                model_fingerprint, ":", tenant_salt.size(), ":", tenant_salt));
}

BlockHash ChildBlockHash(const BlockHash& parent, absl::Span<const TokenId> tokens) {
  std::string message(parent.ToWire());
  message.append(reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(TokenId));
  return Truncated(message);
}

std::vector<BlockHash> BlockHashChain(const BlockHash& root, absl::Span<const TokenId> tokens) {
  std::vector<BlockHash> chain;
  chain.reserve(tokens.size() / kBlockTokens);
  BlockHash parent = root;
  for (size_t begin = 0; begin + kBlockTokens <= tokens.size(); begin += kBlockTokens) {
    parent = ChildBlockHash(parent, tokens.subspan(begin, kBlockTokens));
    chain.push_back(parent);
  }
  return chain;
}

}  // namespace sluice
