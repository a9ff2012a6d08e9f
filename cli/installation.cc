#include "cli/installation.h"

#include <system_error>

namespace sluice::cli {

namespace fs = std::filesystem;

fs::path OwnFolder() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path();
}

std::string FindTinyModel() {
  const fs::path own = OwnFolder();
  for (const fs::path& candidate :
       {own / "../share/sluice/models/deepseek-tiny", own / "../../../models/deepseek-tiny",
        fs::path("models/deepseek-tiny")}) {
    std::error_code error;
    if (fs::exists(candidate / "config.json", error)) return fs::weakly_canonical(candidate, error);
  }
  return "";
}

}  // namespace sluice::cli
