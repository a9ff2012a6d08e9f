#include "engine/weights/checkpoint.h"

#include <simdjson.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr uintmax_t kMaxIndexBytes = 200'000'000;

bool Exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// The index comes from outside: it may name files of this folder and no others.
absl::Status CheckShardName(const std::string& model_dir, const std::string& name) {
  if (name.empty() || name == "." || name == ".." || absl::StrContains(name, "/") ||
      absl::StrContains(name, std::string(1, '\0'))) {
    return absl::InvalidArgumentError(
        absl::StrCat("shard '", name, "' is not a plain file name of the model folder"));
  }
  const fs::path path = fs::path(model_dir) / name;
  std::error_code error;
  if (!fs::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("shard '", name, "' does not exist"));
  }
  const fs::path folder = fs::canonical(model_dir, error);
  const fs::path target = fs::canonical(path, error);
  if (error || target.parent_path() != folder) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shard '", name, "' is a link that leads out of the model folder; copy the file here"));
  }
  return absl::OkStatus();
}

// weight_map of the index: tensor -> shard.
absl::StatusOr<std::map<std::string, std::string>> ReadWeightMap(const std::string& path) {
  std::error_code error_code;
  if (fs::file_size(path, error_code) > kMaxIndexBytes || error_code) {
    return absl::InvalidArgumentError("is unreadable or above 200 MB");
  }
  simdjson::padded_string json;
  if (simdjson::padded_string::load(path).get(json)) {
    return absl::InvalidArgumentError("cannot be read");
  }
  simdjson::dom::parser parser;
  simdjson::dom::object weight_map;
  if (const simdjson::error_code error = parser.parse(json)["weight_map"].get(weight_map)) {
    return absl::InvalidArgumentError(
        absl::StrCat("has no object 'weight_map': ", simdjson::error_message(error)));
  }
  std::map<std::string, std::string> shard_of;
  for (const auto& [key, value] : weight_map) {
    std::string_view shard;
    const std::string name(key);
    if (value.get(shard)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "': shard is not a string"));
    }
    if (!shard_of.emplace(name, std::string(shard)).second) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "' appears twice"));
    }
  }
  return shard_of;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& model_dir) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(model_dir));
  const std::string index = absl::StrCat(model_dir, "/", kIndexFile);
  const std::string single = absl::StrCat(model_dir, "/", kSingleFile);
  if (Exists(index)) {
    SLUICE_RETURN_IF_ERROR(checkpoint->OpenIndexed(index));
  } else if (Exists(single)) {
    SLUICE_RETURN_IF_ERROR(checkpoint->AddFile(single));
  } else {
    return absl::NotFoundError(
        absl::StrCat(model_dir, ": has neither ", kIndexFile, " nor ", kSingleFile));
  }
  return checkpoint;
}

absl::Status Checkpoint::OpenIndexed(const std::string& index_path) {
  auto weight_map = ReadWeightMap(index_path);
  if (!weight_map.ok()) return Annotate(weight_map.status(), index_path);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : *weight_map) shards.insert(shard);
  for (const std::string& shard : shards) {
    SLUICE_RETURN_IF_ERROR(Annotate(CheckShardName(model_dir_, shard), index_path));
    SLUICE_RETURN_IF_ERROR(AddFile(absl::StrCat(model_dir_, "/", shard)));
  }
  for (const auto& [tensor, shard] : *weight_map) {
    const TensorView* view = Find(tensor);
    if (view == nullptr || fs::path(view->file->path()).filename() != shard) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": places tensor '", tensor,
                                                     "' in ", shard, ", which does not hold it"));
    }
  }
  for (const auto& [name, view] : tensors_) {
    if (weight_map->count(name) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(view.file->path(), ": tensor '", name, "' is missing from ", kIndexFile));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::AddFile(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  for (const TensorInfo& tensor : file->tensors()) {
    const TensorView view{&tensor, file.get(), file->Data(tensor)};
    const auto [it, inserted] = tensors_.emplace(tensor.name, view);
    if (!inserted) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor '", tensor.name, "' is also in ", it->second.file->path()));
    }
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

const TensorView* Checkpoint::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

std::vector<FileRange> Checkpoint::RangesOf(absl::string_view prefix) const {
  std::vector<FileRange> ranges;
  for (const auto& file : files_) {
    const std::vector<TensorInfo>& tensors = file->tensors();  // in order of their data
    const auto is_wanted = [&](const TensorInfo& t) { return absl::StartsWith(t.name, prefix); };
    for (auto first = tensors.begin(); first != tensors.end();) {
      first = std::find_if(first, tensors.end(), is_wanted);
      const auto end = std::find_if_not(first, tensors.end(), is_wanted);
      if (first != end) ranges.push_back({file.get(), first->begin, std::prev(end)->end});
      first = end;
    }
  }
  return ranges;
}

void Checkpoint::ReleasePages() const {
  for (const auto& file : files_) file->ReleasePages();
}

std::vector<TensorView> Checkpoint::List() const {
  std::vector<TensorView> list;
  list.reserve(tensors_.size());
  for (const auto& [name, view] : tensors_) list.push_back(view);
  std::sort(list.begin(), list.end(),
            [](const TensorView& a, const TensorView& b) { return a.info->name < b.info->name; });
  return list;
}

}  // namespace sluice
