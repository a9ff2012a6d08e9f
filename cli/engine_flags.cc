#include "cli/engine_flags.h"

#include <CLI/CLI.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sluice::cli {

void AddEngineFlags(CLI::App* app, EngineFlags* flags) {
  app->add_option("model", flags->model_dir, "Model folder")->required();
  app->add_option("--dtype", flags->dtype, "Arithmetic: bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  app->add_option("--isa", flags->isa, "Instruction family: auto, portable, avx2, avx512, amx")
      ->capture_default_str();
  app->add_option("--threads", flags->threads, "0: all cores")->check(CLI::Range(0, 1024));
}

DType DTypeOf(const EngineFlags& flags) {
  return flags.dtype == "f32" ? DType::kF32 : DType::kBF16;
}

absl::StatusOr<std::vector<TokenId>> ParseTokenIds(const std::string& text, int64_t vocab_size) {
  std::vector<TokenId> ids;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    TokenId id = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(part), &id) || id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tokens: '", part, "' is not a token id from 0 to ", vocab_size - 1,
                       "; ids are separated by commas"));
    }
    ids.push_back(id);
  }
  return ids;
}

}  // namespace sluice::cli
