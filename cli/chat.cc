// sluice chat: talk to a cluster in the terminal.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/answer_printer.h"
#include "cli/chat_client.h"
#include "cli/commands.h"
#include "cli/log_printer.h"
#include "cli/server_address.h"

namespace sluice::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  sluice chat                                  a conversation; /reset forgets it, /quit leaves
  sluice chat "Reverse this list: apple, pear"  one question, then exit
  sluice chat --temperature 0 --stats < question.txt
Ctrl-C stops the current answer; twice leaves. Without a terminal, thinking goes to stderr.)";

struct ChatFlags {
  ServerFlags server;
  std::vector<std::string> words;
  std::string model;
  std::string system;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int> max_tokens;
  std::optional<uint64_t> seed;
  bool think = false;
  bool no_think = false;
  bool stats = false;
  double timeout_seconds = 600;
};

v1::ChatRequest MakeRequest(const ChatFlags& flags) {
  v1::ChatRequest request;
  request.set_model(flags.model);
  v1::SamplingParams* const sampling = request.mutable_sampling();
  if (flags.temperature) sampling->set_temperature(static_cast<float>(*flags.temperature));
  if (flags.top_p) sampling->set_top_p(static_cast<float>(*flags.top_p));
  if (flags.max_tokens) sampling->set_max_tokens(*flags.max_tokens);
  if (flags.seed) sampling->set_seed(*flags.seed);
  if (flags.think || flags.no_think) request.set_thinking(flags.think);
  if (!flags.system.empty()) {
    v1::ChatMessage* const system = request.add_messages();
    system->set_role("system");
    system->set_content(flags.system);
  }
  return request;
}

std::string StatsLine(const AnswerStats& stats) {
  const double rate = stats.tokens_per_second();
  return absl::StrFormat(
      "[%d tokens in %.2f s%s, first token after %.2f s%s]", stats.num_tokens, stats.total_seconds,
      rate > 0 ? absl::StrFormat(", %.1f tokens/s", rate) : "", stats.time_to_first_token_seconds,
      stats.cancelled                              ? ", stopped"
      : stats.finished == v1::FINISH_REASON_LENGTH ? ", length limit"
                                                   : "");
}

absl::Status AskAndPrint(const ChatFlags& flags, const std::string& question, bool terminal,
                         ChatClient* client) {
  AnswerPrinter printer(&std::cout, &std::cerr, terminal, WantsColours(STDOUT_FILENO));
  ChatClient::Sink sink;
  sink.on_reasoning = [&](absl::string_view text) { printer.Reasoning(text); };
  sink.on_text = [&](absl::string_view text) { printer.Text(text); };
  const absl::StatusOr<AnswerStats> stats = client->Ask(question, sink);
  if (!stats.ok()) return stats.status();
  printer.End();
  if (flags.stats) std::cerr << StatsLine(*stats) << std::endl;
  return absl::OkStatus();
}

// Ctrl-C cancels the answer that runs; with none running, or a second time in the same answer, it
// leaves.
void WatchInterrupts(ChatClient* client, std::atomic<int>* interrupts_of_answer) {
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  while (true) {
    int number = 0;
    if (sigwait(&interrupt, &number) != 0) return;
    if (interrupts_of_answer->fetch_add(1) == 0 && client->Cancel()) continue;
    // The other thread may wait for input or the network: leave as the default action would.
    (void)!write(STDOUT_FILENO, "\x1b[0m\n", isatty(STDOUT_FILENO) ? 5 : 0);
    _exit(130);
  }
}

void Converse(const ChatFlags& flags, ChatClient* client, std::atomic<int>* interrupts_of_answer) {
  std::cout << "/reset forgets the conversation, /quit leaves, Ctrl-C stops an answer.\n";
  while (true) {
    std::cout << "\n> " << std::flush;
    std::string line;
    if (!std::getline(std::cin, line)) break;
    const absl::string_view question = absl::StripAsciiWhitespace(line);
    if (question.empty()) continue;
    if (question == "/quit" || question == "/exit") return;
    if (question == "/reset") {
      client->Reset();
      std::cout << "(forgotten)\n";
      continue;
    }
    if (question[0] == '/') {
      std::cout << "no such command: " << question << "; there are /reset and /quit\n";
      continue;
    }
    interrupts_of_answer->store(0);
    const absl::Status status =
        AskAndPrint(flags, std::string(question), /*terminal=*/true, client);
    if (!status.ok()) Fail(status);
  }
  std::cout << std::endl;
}

int Chat(const ChatFlags& flags) {
  if (flags.think && flags.no_think) {
    return Fail(absl::InvalidArgumentError("--think and --no-think exclude each other"));
  }
  // Before gRPC starts its threads, so that they inherit the mask and sigwait gets the signal.
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, nullptr);
  signal(SIGPIPE, SIG_IGN);

  const absl::StatusOr<std::string> address = ServerAddress(flags.server);
  if (!address.ok()) return Fail(address.status());
  ChatClient client(*address, MakeRequest(flags), absl::Seconds(flags.timeout_seconds));
  std::atomic<int> interrupts_of_answer{0};
  std::thread(WatchInterrupts, &client, &interrupts_of_answer).detach();

  std::string question = absl::StrJoin(flags.words, " ");
  if (question.empty() && !isatty(STDIN_FILENO)) {
    question.assign(std::istreambuf_iterator<char>(std::cin), {});
    question = std::string(absl::StripTrailingAsciiWhitespace(question));
    if (question.empty()) return Fail(absl::InvalidArgumentError("nothing to ask on stdin"));
  }
  int exit_code = 0;
  if (question.empty()) {
    Converse(flags, &client, &interrupts_of_answer);
  } else {
    const absl::Status status = AskAndPrint(flags, question, isatty(STDOUT_FILENO), &client);
    exit_code = status.ok() ? (interrupts_of_answer > 0 ? 130 : 0) : Fail(status);
  }
  // The watcher refers to `client` until the process is gone.
  std::cout << std::flush;
  _exit(exit_code);
}

}  // namespace

void AddChat(CLI::App* app, int* exit_code) {
  CLI::App* const chat = app->add_subcommand("chat", "Talk to a cluster in the terminal");
  auto flags = std::make_shared<ChatFlags>();
  chat->add_option("question", flags->words, "Ask this and exit; without it, a conversation");
  AddServerFlags(chat, &flags->server);
  chat->add_option("--model", flags->model, "Name of the model, if the cluster has several");
  chat->add_option("--system", flags->system, "System message");
  chat->add_option("-t,--temperature", flags->temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 10.0));
  chat->add_option("--top-p", flags->top_p, "Nucleus")->check(CLI::Range(0.0, 1.0));
  chat->add_option("-n,--max-tokens", flags->max_tokens, "Longest answer")
      ->check(CLI::PositiveNumber);
  chat->add_option("--seed", flags->seed, "Same seed, same answer");
  chat->add_flag("--think", flags->think, "Ask for thinking, of models with both modes");
  chat->add_flag("--no-think", flags->no_think, "Ask for none");
  chat->add_flag("--stats", flags->stats, "Tokens, speed and time to first token on stderr");
  chat->add_option("--timeout", flags->timeout_seconds, "Seconds for one answer")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str();
  chat->footer(kExamples);
  chat->callback([flags, exit_code] { *exit_code = Chat(*flags); });
}

}  // namespace sluice::cli
