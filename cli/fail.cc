#include <iostream>

#include "cli/commands.h"
#include "common/progress_bar.h"

namespace sluice::cli {

int Fail(const absl::Status& status) {
  ClearProgress();
  std::cerr << "sluice: " << status.message() << std::endl;
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace sluice::cli
