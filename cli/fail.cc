#include <iostream>

#include "cli/commands.h"

namespace sluice::cli {

int Fail(const absl::Status& status) {
  std::cerr << "sluice: " << status.message() << std::endl;
  return 1;
}

}  // namespace sluice::cli
