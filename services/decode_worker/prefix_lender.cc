#include "services/decode_worker/prefix_lender.h"

#include <utility>
#include <vector>

namespace sluice::worker {

void PrefixLender::Lend(const FetchRequested& request, bool wanted) {
  const SendSpec& send = request.send;
  // The asker names the transfer. One that is being sent already has its answer, whichever
  // reservation it was asked for first: a second loan would be ended by the first one's send.
  if (loans_.contains(send.transfer)) return;
  const SequenceKey key{send.request, send.attempt};
  absl::StatusOr<PrefixPin> pin = absl::CancelledError("the reservation is over");
  if (wanted) pin = context_.engine->PinPrefix(key, send.begin_token, send.end_token);
  // Started in either case: its end answers the asker.
  loans_.emplace(send.transfer, Loan{key, pin.ok() ? pin->id : PinId(), context_.clock->Now()});
  context_.transfers->StartSend(send);
  if (!pin.ok()) {
    context_.transfers->CancelSend(send.transfer, pin.status());
    return;
  }
  std::vector<absl::Span<const uint8_t>> blocks;
  for (const BlockId block : pin->blocks) blocks.push_back(context_.engine->BlockBytes(block));
  context_.transfers->Offer(send.transfer, send.begin_token, send.end_token, std::move(blocks));
  context_.transfers->FinishSend(send.transfer, FirstToken());
}

void PrefixLender::Cancel(const SequenceKey& key, const absl::Status& why) {
  for (const auto& [transfer, loan] : loans_) {
    if (loan.key == key) context_.transfers->CancelSend(transfer, why);
  }
}

bool PrefixLender::OnSendEnded(const SendEnded& event) {
  const auto it = loans_.find(event.transfer);
  if (it == loans_.end()) return false;
  context_.engine->Unpin(it->second.pin);
  loans_.erase(it);
  return true;
}

std::optional<RequestTimes> PrefixLender::TimesOf(const SequenceKey& key) const {
  for (const auto& [transfer, loan] : loans_) {
    if (loan.key == key) {
      return RequestTimes{loan.began, absl::InfiniteFuture(), /*ending=*/true};
    }
  }
  return std::nullopt;
}

}  // namespace sluice::worker
