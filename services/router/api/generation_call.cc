#include "services/router/api/generation_call.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/random.h"

namespace sluice::router {

namespace {

constexpr size_t kMaxKeptEvents = 8;

}  // namespace

struct GenerationCall::Event {
  int choice = 0;
  absl::Time at;                                // when the dispatcher left it
  int num_tokens = 0;                           // of Mail::tokens
  std::unique_ptr<const GenerationResult> end;  // most events are tokens only
};

// Events in order, with the tokens of all of them behind each other.
struct GenerationCall::Mail {
  std::vector<Event> events;
  std::vector<SampledToken> tokens;

  // Keeps memory for what one step brings, not for what once piled up.
  void Clear() {
    events.clear();
    tokens.clear();
    if (events.capacity() > kMaxKeptEvents) events = std::vector<Event>();
    if (tokens.capacity() > kMaxKeptEvents) tokens = std::vector<SampledToken>();
  }
};

// Between the dispatcher's turns and the front's. At most one wake-up is on its way to the front at
// a time, so what a slow front has queued is bounded by the requests' max_tokens, not by steps.
class GenerationCall::Inbox {
 public:
  // Called before anything is submitted.
  void Open(std::weak_ptr<CallExecutor> executor, std::weak_ptr<GenerationCall> call) {
    absl::MutexLock lock(&mu_);
    executor_ = std::move(executor);
    call_ = std::move(call);
  }

  void Push(Event event, absl::Span<const SampledToken> tokens) {
    event.num_tokens = static_cast<int>(tokens.size());
    absl::MutexLock lock(&mu_);
    if (closed_) return;
    mail_.events.push_back(std::move(event));
    mail_.tokens.insert(mail_.tokens.end(), tokens.begin(), tokens.end());
  }

  // Has the call handle what is here; itself on this thread with `alone`, if it is free.
  void Flush(bool alone) {
    std::shared_ptr<CallExecutor> executor;
    std::shared_ptr<GenerationCall> call;
    {
      absl::MutexLock lock(&mu_);
      if (mail_.events.empty() || wake_up_pending_) return;
      executor = executor_.lock();
      call = call_.lock();
      if (executor == nullptr || call == nullptr) return;
      wake_up_pending_ = true;
    }
    if (alone && executor->TryRun(call.get())) return;
    executor->Post(call);
  }

  // REQUIRES: *mail is empty.
  void TakeAll(Mail* mail) {
    absl::MutexLock lock(&mu_);
    wake_up_pending_ = false;
    std::swap(mail_, *mail);
  }

  void Close() {
    absl::MutexLock lock(&mu_);
    closed_ = true;
    mail_ = Mail();
  }

 private:
  absl::Mutex mu_;
  std::weak_ptr<CallExecutor> executor_ ABSL_GUARDED_BY(mu_);
  std::weak_ptr<GenerationCall> call_ ABSL_GUARDED_BY(mu_);
  Mail mail_ ABSL_GUARDED_BY(mu_);
  bool wake_up_pending_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

class GenerationCall::Sink : public GenerationSink {
 public:
  Sink(std::shared_ptr<Inbox> inbox, int choice) : inbox_(std::move(inbox)), choice_(choice) {}

  void OnTokens(absl::Span<const SampledToken> tokens) override {
    Event event;
    event.choice = choice_;
    event.at = MonotonicNow();
    inbox_->Push(std::move(event), tokens);
  }

  void OnEnd(const GenerationResult& result) override {
    Event event;
    event.choice = choice_;
    event.end = std::make_unique<const GenerationResult>(result);
    inbox_->Push(std::move(event), {});
  }

  void Flush(bool alone) override { inbox_->Flush(alone); }

 private:
  const std::shared_ptr<Inbox> inbox_;
  const int choice_;
};

struct GenerationCall::Choice {
  Choice(const Tokenizer& tokenizer, const GenerationPlan& plan)
      : output(tokenizer, plan.output, plan.sampling.stop_token_ids, plan.sampling.min_tokens) {}

  RequestId id;
  OutputProcessor output;
  bool started = false;   // its first delta was written
  bool finished = false;  // its finish reason was written
  bool ended = false;     // the dispatcher is done with it
  GenerationResult result;
};

std::shared_ptr<GenerationCall> GenerationCall::Start(ApiContext* context, GenerationPlan plan,
                                                      ResponseWriter* writer,
                                                      std::weak_ptr<CallExecutor> executor) {
  std::shared_ptr<GenerationCall> call(new GenerationCall(context, std::move(plan), writer));
  call->Submit(std::move(executor));
  return call;
}

GenerationCall::GenerationCall(ApiContext* context, GenerationPlan plan, ResponseWriter* writer)
    : context_(context),
      plan_(std::move(plan)),
      writer_(writer),
      mail_(std::make_unique<Mail>()),
      inbox_(std::make_shared<Inbox>()) {}

GenerationCall::~GenerationCall() { Cancel(); }

void GenerationCall::Submit(std::weak_ptr<CallExecutor> executor) {
  inbox_->Open(std::move(executor), weak_from_this());
  num_running_ = plan_.num_choices();
  submitted_at_ = MonotonicNow();
  for (int i = 0; i < plan_.num_choices(); ++i) {
    choices_.push_back(std::make_unique<Choice>(context_->tokenizer(), plan_));
    choices_.back()->id = RandomId128<RequestId>();
  }
  for (int i = 0; i < plan_.num_choices(); ++i) {
    GenerationSpec spec;
    spec.id = choices_[i]->id;
    spec.api = plan_.api;
    spec.prompt = plan_.prompts[i / plan_.n];
    spec.sampling = plan_.sampling;
    spec.sampling.seed += static_cast<uint64_t>(i % plan_.n);
    spec.sampling.max_tokens = plan_.max_tokens[i / plan_.n];
    spec.tenant_salt = plan_.tenant;
    spec.deadline = plan_.deadline;
    spec.submitted_at = submitted_at_;
    context_->dispatcher().Submit(std::move(spec), std::make_shared<Sink>(inbox_, i));
  }
}

void GenerationCall::Cancel() {
  if (writer_ == nullptr) return;
  writer_ = nullptr;
  inbox_->Close();
  CancelChoices();
}

void GenerationCall::CancelChoices() {
  for (const auto& choice : choices_) {
    if (!choice->ended) context_->dispatcher().Cancel(choice->id);
  }
}

void GenerationCall::HandleEvents() {
  if (writer_ == nullptr) return;
  const bool was_silent = !tokens_sent_;
  inbox_->TakeAll(mail_.get());
  // One delta a choice, however many steps are waiting: under load events merge instead of piling
  // up.
  absl::InlinedVector<ChoiceDelta, 1> deltas;
  const auto delta_of = [&deltas](int index) -> ChoiceDelta& {
    for (ChoiceDelta& delta : deltas) {
      if (delta.index == index) return delta;
    }
    deltas.emplace_back().index = index;
    return deltas.back();
  };
  std::optional<ApiError> failure;
  absl::Span<const SampledToken> rest = mail_->tokens;
  for (const Event& event : mail_->events) {
    const absl::Span<const SampledToken> tokens = rest.subspan(0, event.num_tokens);
    rest.remove_prefix(event.num_tokens);
    ChoiceDelta& delta = delta_of(event.choice);
    if (first_token_at_ == absl::InfinitePast() && !tokens.empty()) first_token_at_ = event.at;
    HandleTokens(event.choice, tokens, &delta);
    ApiError error;
    if (event.end != nullptr && !HandleEnd(event.choice, *event.end, &delta, &error) &&
        !failure.has_value()) {
      failure = std::move(error);
    }
  }
  mail_->Clear();
  for (ChoiceDelta& delta : deltas) {
    WriteDelta(&delta);
    if (writer_ == nullptr) return;  // the writer cancelled
  }
  if (was_silent && tokens_sent_ && first_token_at_ != absl::InfinitePast()) {
    context_->metrics().ObserveFrontStages(plan_.parsed_at - plan_.received_at,
                                           submitted_at_ - plan_.parsed_at,
                                           first_delta_at_ - first_token_at_);
  }

  if (!failure.has_value() && num_running_ > 0) return;
  ResponseWriter* const writer = std::exchange(writer_, nullptr);
  inbox_->Close();
  if (failure.has_value()) {
    CancelChoices();
    failure->tokens_sent = tokens_sent_;
    writer->OnError(*failure);
  } else {
    writer->OnComplete(Summarize());
  }
}

void GenerationCall::HandleTokens(int index, absl::Span<const SampledToken> tokens,
                                  ChoiceDelta* delta) {
  Choice& choice = *choices_[index];
  if (choice.finished || tokens.empty()) return;
  if (!choice.started) {
    choice.started = true;
    delta->first = true;
    if (!plan_.echo_texts.empty()) delta->text = plan_.echo_texts[index / plan_.n];
  }
  if (choice.output.Add(tokens, delta)) {
    choice.finished = true;
    delta->finish = FinishReason::kStop;
    context_->dispatcher().Stop(choice.id);
  }
}

bool GenerationCall::HandleEnd(int index, const GenerationResult& result, ChoiceDelta* delta,
                               ApiError* error) {
  Choice& choice = *choices_[index];
  if (choice.ended) return true;
  choice.ended = true;
  choice.result = result;
  --num_running_;
  if (choice.finished) return true;  // by a stop string; how the cancelled rest ended is no news
  switch (result.end) {
    case GenerationEnd::kStop:
    case GenerationEnd::kLength:
      choice.finished = true;
      if (!choice.started) {
        choice.started = true;
        delta->first = true;
        if (!plan_.echo_texts.empty()) delta->text = plan_.echo_texts[index / plan_.n];
      }
      choice.output.Finish(delta);
      delta->finish = result.end == GenerationEnd::kStop || !choice.output.matched_stop().empty()
                          ? FinishReason::kStop
                          : FinishReason::kLength;
      return true;
    case GenerationEnd::kCancelled:
      // We had not asked for it: the router is stopping.
      error->kind = ErrorKind::kNoCapacity;
      error->message = "the router cancelled the request because it is stopping";
      return false;
    case GenerationEnd::kFailed:
      *error =
          ToApiError(result.status.ok() ? absl::InternalError("generation failed") : result.status);
      error->retry_after = result.retry_after;
      return false;
  }
  return true;
}

void GenerationCall::WriteDelta(ChoiceDelta* delta) {
  if (!delta->first && delta->text.empty() && delta->reasoning.empty() && delta->tokens.empty() &&
      delta->finish == FinishReason::kNone) {
    return;
  }
  delta->completion_tokens = choices_[delta->index]->output.completion_tokens();
  delta->prompt_tokens = static_cast<int>(plan_.prompts[delta->index / plan_.n].size());
  if (!tokens_sent_) {
    tokens_sent_ = true;
    first_delta_at_ = MonotonicNow();
  }
  writer_->OnDelta(*delta);
}

RequestSummary GenerationCall::Summarize() const {
  RequestSummary summary;
  summary.prompt_tokens = plan_.num_prompt_tokens();
  for (int i = 0; i < plan_.num_choices(); ++i) {
    const Choice& choice = *choices_[i];
    summary.completion_tokens += choice.output.completion_tokens();
    summary.reasoning_tokens += choice.output.reasoning_tokens();
    // Later choices of a prompt find the first one's blocks; that is not the client's cache hit.
    if (i % plan_.n == 0) {
      summary.cached_tokens += std::min<int64_t>(
          choice.result.cached_tokens, static_cast<int64_t>(plan_.prompts[i / plan_.n].size()));
    }
  }
  if (!choices_.empty()) summary.stages = choices_.front()->result.stages;
  summary.stages[time_stage::kParse] = plan_.parsed_at - plan_.received_at;
  summary.stages[time_stage::kTokenize] = submitted_at_ - plan_.parsed_at;
  if (first_token_at_ != absl::InfinitePast() && first_delta_at_ != absl::InfinitePast()) {
    summary.stages[time_stage::kDetokenize] = first_delta_at_ - first_token_at_;
  }
  summary.total = MonotonicNow() - plan_.received_at;
  summary.time_to_first_token = first_delta_at_ - plan_.received_at;
  return summary;
}

}  // namespace sluice::router
