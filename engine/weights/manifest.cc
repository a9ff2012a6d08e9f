#include "engine/weights/manifest.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/read_file.h"
#include "common/status_macros.h"
#include "engine/weights/sha256.h"
#include "modelspec/json_object.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kFormat = 1;
constexpr size_t kMaxManifestBytes = 200'000'000;
constexpr size_t kDigestHexLength = 64;
constexpr size_t kMaxGoldenTokens = 4096;

// Read whole when a model is loaded. The first is required.
constexpr const char* kFileNames[] = {"config.json", "tokenizer.json", "tokenizer_config.json",
                                      "chat_template.jinja", "generation_config.json"};

std::string PathOf(const std::string& model_dir, const std::string& name) {
  return absl::StrCat(model_dir, "/", name);
}

absl::Status Refuse(absl::string_view name, absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat(name, ": ", why, " (", kManifestFile, " describes another one)"));
}

// The manifest's own mistakes. It may come from outside with the model.
absl::Status CheckName(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || absl::StrContains(name, '/') ||
      absl::StrContains(name, '\0')) {
    return absl::InvalidArgumentError(absl::StrCat("'", name, "' is not a plain file name"));
  }
  return absl::OkStatus();
}

absl::Status CheckDigest(absl::string_view of, absl::string_view hex) {
  if (hex.size() != kDigestHexLength ||
      hex.find_first_not_of("0123456789abcdef") != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(of, ": sha256 is not ", kDigestHexLength, " lower-case hex digits"));
  }
  return absl::OkStatus();
}

absl::Status CheckGolden(const GoldenAnswer& golden) {
  const size_t num_outputs = golden.output.size();
  if (golden.prompt.empty() || num_outputs == 0 || golden.prompt.size() > kMaxGoldenTokens ||
      num_outputs > kMaxGoldenTokens || golden.logprobs.size() != num_outputs ||
      golden.margins.size() != num_outputs) {
    return absl::InvalidArgumentError(
        "golden: prompt, output, logprobs and margins do not fit together");
  }
  if (!(golden.tolerance_f32 > 0) || !(golden.tolerance_bf16 > 0)) {
    return absl::InvalidArgumentError("golden: a tolerance is not positive");
  }
  return absl::OkStatus();
}

absl::Status CheckManifest(const Manifest& manifest) {
  std::set<std::string> names;
  const auto check = [&names](const std::string& name, absl::string_view sha256) -> absl::Status {
    SLUICE_RETURN_IF_ERROR(CheckName(name));
    if (!names.insert(name).second) {
      return absl::InvalidArgumentError(absl::StrCat("'", name, "' appears twice"));
    }
    return CheckDigest(name, sha256);
  };
  for (const ManifestFile& file : manifest.files) {
    SLUICE_RETURN_IF_ERROR(check(file.name, file.sha256));
  }
  for (const ManifestShard& shard : manifest.shards) {
    SLUICE_RETURN_IF_ERROR(check(shard.name, shard.header_sha256));
    for (const auto& [tensor, sha256] : shard.tensor_sha256) {
      SLUICE_RETURN_IF_ERROR(CheckDigest(absl::StrCat(shard.name, ": tensor ", tensor), sha256));
    }
  }
  if (manifest.shards.empty()) return absl::InvalidArgumentError("names no shards");
  return manifest.has_golden ? CheckGolden(manifest.golden) : absl::OkStatus();
}

// These throw what nlohmann throws for a missing field or one of another type.
uint64_t SizeBytes(const Json& entry) {
  return entry.at("bytes").get_ref<const Json::number_unsigned_t&>();
}

std::vector<TokenId> TokenIds(const Json& list) {
  std::vector<TokenId> ids;
  for (const Json& id : list) {
    const uint64_t value = id.get_ref<const Json::number_unsigned_t&>();
    // What is no id of any vocabulary stays none.
    ids.push_back(static_cast<TokenId>(std::min<uint64_t>(value, INT32_MAX)));
  }
  return ids;
}

GoldenAnswer ParseGolden(const Json& json) {
  GoldenAnswer golden;
  golden.dtype = json.at("dtype") == "bf16" ? DType::kBF16 : DType::kF32;
  golden.prompt = TokenIds(json.at("prompt"));
  golden.output = TokenIds(json.at("output"));
  json.at("logprobs").get_to(golden.logprobs);
  json.at("margins").get_to(golden.margins);
  json.at("tolerance").at("f32").get_to(golden.tolerance_f32);
  json.at("tolerance").at("bf16").get_to(golden.tolerance_bf16);
  return golden;
}

Manifest ReadFields(const Json& json) {
  Manifest manifest;
  for (const Json& entry : json.at("files")) {
    manifest.files.push_back({entry.at("name"), SizeBytes(entry), entry.at("sha256")});
  }
  for (const Json& entry : json.at("shards")) {
    ManifestShard shard{entry.at("name"), SizeBytes(entry), entry.at("header_sha256"), {}};
    for (const auto& [tensor, sha256] : entry.at("tensors").items()) {
      shard.tensor_sha256.emplace(tensor, sha256.get<std::string>());
    }
    manifest.shards.push_back(std::move(shard));
  }
  if (const auto golden = json.find("golden"); golden != json.end()) {
    manifest.has_golden = true;
    manifest.golden = ParseGolden(*golden);
  }
  return manifest;
}

Json DescribeManifest(const Manifest& manifest) {
  Json json = {{"format", kFormat}, {"files", Json::array()}, {"shards", Json::array()}};
  for (const ManifestFile& file : manifest.files) {
    json["files"].push_back(
        {{"name", file.name}, {"bytes", file.size_bytes}, {"sha256", file.sha256}});
  }
  for (const ManifestShard& shard : manifest.shards) {
    Json tensors = Json::object();
    for (const auto& [tensor, sha256] : shard.tensor_sha256) tensors[tensor] = sha256;
    json["shards"].push_back({{"name", shard.name},
                              {"bytes", shard.size_bytes},
                              {"header_sha256", shard.header_sha256},
                              {"tensors", std::move(tensors)}});
  }
  if (!manifest.has_golden) return json;
  const GoldenAnswer& golden = manifest.golden;
  json["golden"] = {
      {"dtype", DTypeName(golden.dtype)},
      {"prompt", golden.prompt},
      {"output", golden.output},
      {"logprobs", golden.logprobs},
      {"margins", golden.margins},
      {"tolerance", {{"f32", golden.tolerance_f32}, {"bf16", golden.tolerance_bf16}}}};
  return json;
}

absl::Status WriteDurably(const std::string& path, absl::string_view text) {
  const auto failed = [&path](absl::string_view what) {
    return absl::UnavailableError(absl::StrCat(path, ": ", what, ": ", std::strerror(errno)));
  };
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return failed("cannot be created");
  while (!text.empty()) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const absl::Status status = failed("cannot be written");
      close(fd);
      return status;
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
  const bool flushed = fsync(fd) == 0;
  return close(fd) == 0 && flushed ? absl::OkStatus() : failed("cannot be flushed");
}

absl::Status CheckSize(const std::string& model_dir, const std::string& name, uint64_t expected) {
  std::error_code error;
  const uintmax_t size_bytes = fs::file_size(PathOf(model_dir, name), error);
  if (error) return Refuse(name, "is missing or cannot be read");
  if (size_bytes != expected) {
    return Refuse(name, absl::StrCat("has ", size_bytes, " bytes instead of ", expected));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> ManifestFileNames() {
  return {std::begin(kFileNames), std::end(kFileNames)};
}

absl::StatusOr<Manifest> ParseManifest(absl::string_view text) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text));
  Manifest manifest;
  try {
    if (json.at("format") != kFormat) {
      return absl::InvalidArgumentError(
          absl::StrCat("format ", json.at("format").dump(-1, ' ', true), ", this program knows ",
                       kFormat, ": write it again with sluice inspect --write-manifest"));
    }
    manifest = ReadFields(json);
  } catch (const Json::exception& exception) {
    return absl::InvalidArgumentError(exception.what());
  }
  SLUICE_RETURN_IF_ERROR(CheckManifest(manifest));
  return manifest;
}

absl::StatusOr<Manifest> ReadManifest(const std::string& model_dir) {
  const std::string path = PathOf(model_dir, kManifestFile);
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxManifestBytes));
  absl::StatusOr<Manifest> manifest = ParseManifest(text);
  if (!manifest.ok()) return Annotate(manifest.status(), path);
  return manifest;
}

absl::Status WriteManifest(const std::string& model_dir, const Manifest& manifest) {
  const std::string path = PathOf(model_dir, kManifestFile);
  const std::string temporary = absl::StrCat(path, ".", getpid());
  absl::Status status = WriteDurably(temporary, DescribeManifest(manifest).dump(1) + "\n");
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) {
    status = absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  if (!status.ok()) std::remove(temporary.c_str());
  return status;
}

absl::Status CheckFilesAgainstManifest(const std::string& model_dir, const Manifest& manifest) {
  std::set<std::string> shards;
  for (const ManifestShard& shard : manifest.shards) {
    SLUICE_RETURN_IF_ERROR(CheckSize(model_dir, shard.name, shard.size_bytes));
    shards.insert(shard.name);
  }
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(model_dir, error)) {
    const std::string name = entry.path().filename().string();
    if (absl::EndsWith(name, ".safetensors") && shards.count(name) == 0) {
      return Refuse(name, "is a surplus shard");
    }
  }
  std::set<std::string> listed;
  for (const ManifestFile& file : manifest.files) {
    SLUICE_RETURN_IF_ERROR(CheckSize(model_dir, file.name, file.size_bytes));
    SLUICE_ASSIGN_OR_RETURN(const std::string text,
                            ReadFile(PathOf(model_dir, file.name), file.size_bytes));
    if (Sha256Hex(text) != file.sha256) return Refuse(file.name, "differs");
    listed.insert(file.name);
  }
  // Loading reads them when they are there.
  for (const char* name : kFileNames) {
    if (listed.count(name) > 0) continue;
    if (fs::status(PathOf(model_dir, name), error).type() != fs::file_type::not_found) {
      return Refuse(name, "is a surplus file");
    }
  }
  return absl::OkStatus();
}

}  // namespace sluice
