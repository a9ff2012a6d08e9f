// Where this program lies, and what comes with it. Any thread.
#pragma once

#include <filesystem>
#include <string>

namespace sluice::cli {

// The folder of the running program.
std::filesystem::path OwnFolder();

// The model that comes with Sluice, in an installation or beside the build folder of a checkout;
// "" if it is in neither place.
std::string FindTinyModel();

}  // namespace sluice::cli
