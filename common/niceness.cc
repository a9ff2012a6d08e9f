#include "common/niceness.h"

#include <sys/resource.h>
#include <unistd.h>

#include "common/log.h"

namespace sluice {

void SetNicenessOfThisThread(int niceness) {
  if (niceness == 0) return;
  // On Linux the value belongs to the thread, not to the process as POSIX has it.
  if (setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), niceness) != 0) {
    SLUICE_LOG(Warning) << "cannot set the niceness of a thread to " << niceness;
  }
}

}  // namespace sluice
