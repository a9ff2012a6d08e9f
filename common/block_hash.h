// Identity of a full KV block for prefix reuse: a chain over (parent, tokens) rooted in the model's
// fingerprint and the tenant's salt, so equal hashes mean equal KV bytes and tenants never share
// unless they share a salt. SHA-256 truncated to 128 bits. Pure functions, any thread.
//
// Router (affinity), prefill worker and decode worker (reuse) must agree on it, hence one place.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/ids.h"

namespace sluice {

using BlockHash = StrongId128<struct BlockHashTag>;

// Tokens per KV block, everywhere (FlashMLA's page size; design.md section 4).
inline constexpr int kBlockTokens = 64;

// The parent of a sequence's first block.
BlockHash RootBlockHash(absl::string_view model_fingerprint, absl::string_view tenant_salt);

// REQUIRES: tokens.size() == kBlockTokens.
BlockHash ChildBlockHash(const BlockHash& parent, absl::Span<const TokenId> tokens);

// Hashes of all full blocks of `tokens`: floor(tokens.size() / kBlockTokens) entries.
std::vector<BlockHash> BlockHashChain(const BlockHash& root, absl::Span<const TokenId> tokens);

}  // namespace sluice
