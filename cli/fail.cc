#include <iostream>

#include "cli/commands.h"
#include "common/progress_bar.h"

namespace sluice::cli {

int Fail(const absl::Status& status) {
  ClearProgress();
  std::cerr << "sluice: " << status.message() << std::endl;
  return 1;
}

}  // namespace sluice::cli
