#include "cli/run_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/read_file.h"
#include "common/status_macros.h"

namespace sluice::cli {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFileBytes = 64 << 10;

std::string LockPath(const std::string& run_dir) { return run_dir + "/lock"; }
std::string InfoPath(const std::string& run_dir) { return run_dir + "/cluster.json"; }

// Exceptions of the JSON library end here.
absl::StatusOr<nlohmann::json> ParseObject(const std::string& path, const std::string& text) {
  nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_object()) return value;
  return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
}

int NumberOf(const nlohmann::json& ports, const char* key) {
  const auto it = ports.find(key);
  return it != ports.end() && it->is_number_integer() ? it->get<int>() : 0;
}

std::string StringOf(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

}  // namespace

std::string DefaultRunDir() {
  const char* const runtime_dir = getenv("XDG_RUNTIME_DIR");
  if (runtime_dir != nullptr && *runtime_dir != '\0') return absl::StrCat(runtime_dir, "/sluice");
  return "run";
}

std::string RunDirFlag(const std::string& run_dir) {
  return run_dir == DefaultRunDir() ? "" : absl::StrCat(" --run-dir ", run_dir);
}

absl::StatusOr<ClusterInfo> ReadClusterInfo(const std::string& run_dir) {
  const absl::StatusOr<std::string> text = ReadFile(InfoPath(run_dir), kMaxFileBytes);
  if (absl::IsNotFound(text.status()) || !RunDirLock::IsHeld(run_dir)) {
    return absl::NotFoundError(absl::StrCat("no cluster runs in ", run_dir));
  }
  SLUICE_RETURN_IF_ERROR(text.status());
  SLUICE_ASSIGN_OR_RETURN(const nlohmann::json object, ParseObject(InfoPath(run_dir), *text));
  ClusterInfo info;
  info.pid = NumberOf(object, "pid");
  info.http_address = StringOf(object, "http_address");
  info.grpc_address = StringOf(object, "grpc_address");
  info.admin_address = StringOf(object, "admin_address");
  if (const int seconds = NumberOf(object, "stop_timeout_seconds"); seconds > 0) {
    info.stop_timeout = absl::Seconds(seconds);
  }
  if (info.pid <= 0) return absl::InvalidArgumentError(InfoPath(run_dir) + ": pid is missing");
  return info;
}

absl::Status WriteClusterInfo(const std::string& run_dir, const ClusterInfo& info) {
  const nlohmann::json object = {
      {"pid", info.pid},
      {"http_address", info.http_address},
      {"grpc_address", info.grpc_address},
      {"admin_address", info.admin_address},
      {"stop_timeout_seconds",
       absl::ToInt64Seconds(absl::Ceil(info.stop_timeout, absl::Seconds(1)))}};
  // Renamed into place, so that nobody reads half of it.
  const std::string path = InfoPath(run_dir);
  const std::string new_path = path + ".new";
  std::ofstream file(new_path);
  file << object.dump(1) << "\n";
  file.close();
  if (!file || rename(new_path.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", strerror(errno)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<PortFile>> ReadPortFile(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxFileBytes);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  SLUICE_RETURN_IF_ERROR(text.status());
  SLUICE_ASSIGN_OR_RETURN(const nlohmann::json object, ParseObject(path, *text));
  PortFile ports;
  ports.http_port = NumberOf(object, "http_port");
  ports.grpc_port = NumberOf(object, "grpc_port");
  ports.fleet_port = NumberOf(object, "fleet_port");
  ports.admin_port = NumberOf(object, "admin_port");
  return ports;
}

absl::StatusOr<std::unique_ptr<RunDirLock>> RunDirLock::Take(const std::string& run_dir) {
  std::error_code error;
  const bool created = fs::create_directories(run_dir, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat("cannot create ", run_dir, ": ", error.message(),
                                               "; choose another --run-dir"));
  }
  if (created) fs::permissions(run_dir, fs::perms::owner_all, error);
  const int fd = open(LockPath(run_dir).c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot open ", LockPath(run_dir), ": ", strerror(errno)));
  }
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    close(fd);
    return absl::AlreadyExistsError(absl::StrCat("a cluster already runs in ", run_dir,
                                                 "; stop it with `sluice down", RunDirFlag(run_dir),
                                                 "`, or start another one with another --run-dir "
                                                 "and other ports"));
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(run_dir, error)) {
    const std::string name = entry.path().filename();
    if (name == "cluster.json" || absl::EndsWith(name, ".ports.json")) {
      fs::remove(entry.path(), error);
    }
  }
  return std::unique_ptr<RunDirLock>(new RunDirLock(run_dir, fd));
}

RunDirLock::~RunDirLock() {
  unlink(InfoPath(run_dir_).c_str());
  close(fd_);
}

bool RunDirLock::IsHeld(const std::string& run_dir) {
  const int fd = open(LockPath(run_dir).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return false;
  const bool held = flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  close(fd);
  return held;
}

}  // namespace sluice::cli
