// The faults of the router's recovery that the cluster simulation must find (common/mutants.h).
#pragma once

#include "common/mutants.h"

namespace sluice::router {

enum class RouterMutant {
  kNone,
  kKeepAttempt,             // a new plan has the number of the old one
  kResumeWithoutLastToken,  // a resumed answer goes on as if its last token had not been sent
  kIgnoreTokenIndex,        // tokens are passed on as they come
  kFinishWithGap,           // the end of an answer does not wait for the tokens before it
  kForgetCancel,            // workers are not told that an attempt is over
  kKeepAssigned,            // an attempt that is over still counts as its worker's load
  kIgnoreLostWorker,        // requests do not hear that their worker left
};

}  // namespace sluice::router
