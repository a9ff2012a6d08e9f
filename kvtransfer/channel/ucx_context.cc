#include "kvtransfer/channel/ucx_context.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/statvfs.h>
#include <ucs/debug/debug.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace sluice {
namespace {

// When its library is loaded, UCX installs handlers for fatal signals (off by default only since
// 1.20) and offers no way to ask before. A crash is the program's own to report.
void RemoveUcxSignalHandlers() {
  for (int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) {
    struct sigaction action;
    if (sigaction(signal, nullptr, &action) != 0) continue;
    void* handler = (action.sa_flags & SA_SIGINFO) != 0
                        ? reinterpret_cast<void*>(action.sa_sigaction)
                        : reinterpret_cast<void*>(action.sa_handler);
    Dl_info info;
    if (handler == reinterpret_cast<void*>(SIG_DFL) || dladdr(handler, &info) == 0) continue;
    if (info.dli_fname != nullptr && std::strstr(info.dli_fname, "libucs") != nullptr) {
      ucs_debug_disable_signal(signal);
    }
  }
}

// Whether a transport with one of these names may be used under a UCX_TLS list.
bool Allows(const std::string& tls, std::initializer_list<absl::string_view> names) {
  if (tls.empty() || tls[0] == '^') return true;
  for (absl::string_view listed : absl::StrSplit(tls, ',')) {
    if (listed == "all" || std::find(names.begin(), names.end(), listed) != names.end()) {
      return true;
    }
  }
  return false;
}

// UCX says "no resources" when its shared memory transports find no room for their buffers: the
// usual cause is a container with a small /dev/shm.
std::string SharedMemoryHint() {
  constexpr uint64_t kRoomBytes = 16 << 20;  // two interfaces' receive buffers, some to spare
  struct statvfs info;
  if (statvfs("/dev/shm", &info) != 0) return "";
  const uint64_t free_bytes = uint64_t{info.f_bavail} * info.f_frsize;
  if (free_bytes >= kRoomBytes) return "";
  return absl::StrCat("; /dev/shm has only ", free_bytes >> 10,
                      " KiB free: give it at least 16 MiB, or set transfer.tls to transports "
                      "without shared memory, for example tcp");
}

class Config {
 public:
  ~Config() {
    if (config_ != nullptr) ucp_config_release(config_);
  }
  absl::Status Read() {
    return UcxStatus(ucp_config_read(nullptr, nullptr, &config_), "reading the configuration");
  }
  absl::Status Set(const char* name, const std::string& value) {
    return UcxStatus(ucp_config_modify(config_, name, value.c_str()),
                     absl::StrCat("setting ", name, "=", value));
  }
  ucp_config_t* get() const { return config_; }

 private:
  ucp_config_t* config_ = nullptr;
};

absl::Status Configure(const UcxOptions& options, Config* config) {
  SLUICE_RETURN_IF_ERROR(config->Read());
  if (!options.tls.empty()) SLUICE_RETURN_IF_ERROR(config->Set("TLS", options.tls));
  if (!options.net_devices.empty()) {
    SLUICE_RETURN_IF_ERROR(config->Set("NET_DEVICES", options.net_devices));
  }
  // The receiver reads, or the payload comes in active messages that its own code places. Never a
  // put by the sender: it could not be recalled.
  SLUICE_RETURN_IF_ERROR(config->Set("RNDV_SCHEME", "get_zcopy"));
  // UCX 1.13 dies in its keep-alive when a peer was gone before its greeting was read: that
  // endpoint has no transport, and is looked after all the same. The handoff protocol has
  // heartbeats.
  SLUICE_RETURN_IF_ERROR(config->Set("KEEPALIVE_INTERVAL", "inf"));
  // Shared memory hides that it can report failures, and mode PEER then falls back to TCP over the
  // loopback.
  const char* env_tls = std::getenv("UCX_TLS");
  std::string tls = !options.tls.empty() ? options.tls : env_tls != nullptr ? env_tls : "";
  if (Allows(tls, {"shm", "sm", "mm", "posix", "sysv"})) {
    SLUICE_RETURN_IF_ERROR(config->Set("MM_ERROR_HANDLING", "y"));
  }
  // Else the transfer thread waits in connect() for a host that does not answer, minutes long, and
  // UCX 1.13 ends the process when a peer dies between connecting and the greeting.
  if (Allows(tls, {"tcp"})) SLUICE_RETURN_IF_ERROR(config->Set("CONN_NB", "y"));
  return absl::OkStatus();
}

}  // namespace

absl::Status UcxStatus(ucs_status_t status, const std::string& what) {
  if (status == UCS_OK) return absl::OkStatus();
  std::string text = absl::StrCat("UCX: ", what, ": ", ucs_status_string(status));
  switch (status) {
    case UCS_ERR_CANCELED:
      return absl::CancelledError(text);
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_NO_RESOURCE:
      return absl::ResourceExhaustedError(text);
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
      return absl::InvalidArgumentError(text);
    case UCS_ERR_NO_DEVICE:
    case UCS_ERR_NO_ELEM:
    case UCS_ERR_UNSUPPORTED:
      return absl::FailedPreconditionError(text);
    default:
      return absl::UnavailableError(text);
  }
}

absl::StatusOr<std::unique_ptr<UcxContext>> UcxContext::Create(const UcxOptions& options) {
  std::unique_ptr<UcxContext> context(new UcxContext);
  SLUICE_RETURN_IF_ERROR(context->Init(options));
  return context;
}

absl::Status UcxContext::Init(const UcxOptions& options) {
  RemoveUcxSignalHandlers();
  Config config;
  SLUICE_RETURN_IF_ERROR(Configure(options, &config));

  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  // No RMA: with it the process would serve puts and gets of whoever reaches it.
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  ucs_status_t status = ucp_init(&params, config.get(), &context_);
  if (status != UCS_OK) {
    return absl::FailedPreconditionError(
        absl::StrCat("UCX offers no transport for tls='", options.tls, "' net_devices='",
                     options.net_devices, "': ", ucs_status_string(status)));
  }
  ucp_worker_params_t worker_params = {};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS;
  worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
  // With more, it could not be armed while anything is to be sent to a peer that does not read.
  worker_params.events = UCP_WAKEUP_RX;
  if (const ucs_status_t created = ucp_worker_create(context_, &worker_params, &worker_);
      created != UCS_OK) {
    const absl::Status status = UcxStatus(created, "creating a worker");
    return absl::Status(status.code(), absl::StrCat(status.message(), SharedMemoryHint()));
  }
  SLUICE_RETURN_IF_ERROR(
      UcxStatus(ucp_worker_get_efd(worker_, &event_fd_), "asking for the event descriptor"));

  ucp_worker_attr_t attr = {};
  attr.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER;
  SLUICE_RETURN_IF_ERROR(UcxStatus(ucp_worker_query(worker_, &attr), "querying the worker"));
  max_am_header_bytes_ = attr.max_am_header;
  return absl::OkStatus();
}

UcxContext::~UcxContext() {
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
}

absl::Status UcxContext::SetMessageHandler(ucp_am_recv_callback_t callback, void* arg) {
  ucp_am_handler_param_t handler = {};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS;
  handler.id = kUcxActiveMessageId;
  handler.cb = callback;
  handler.arg = arg;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA;
  return UcxStatus(ucp_worker_set_am_recv_handler(worker_, &handler),
                   "setting the message handler");
}

absl::StatusOr<std::string> UcxContext::WorkerAddress() const {
  ucp_address_t* address = nullptr;
  size_t size_bytes = 0;
  SLUICE_RETURN_IF_ERROR(UcxStatus(ucp_worker_get_address(worker_, &address, &size_bytes),
                                   "asking for the worker's address"));
  std::string bytes(reinterpret_cast<const char*>(address), size_bytes);
  ucp_worker_release_address(worker_, address);
  return bytes;
}

}  // namespace sluice
