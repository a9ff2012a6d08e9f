// Flags that the commands which run the engine themselves share. Any thread.
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "modelspec/kv_layout.h"

namespace sluice::cli {

struct EngineFlags {
  std::string model_dir;
  std::string dtype = "bf16";
  std::string isa = "auto";
  int threads = 0;
};

void AddEngineFlags(CLI::App* app, EngineFlags* flags);
DType DTypeOf(const EngineFlags& flags);

// "0,17,4" as ids within [0, vocab_size); at least one.
absl::StatusOr<std::vector<TokenId>> ParseTokenIds(const std::string& text, int64_t vocab_size);

}  // namespace sluice::cli
