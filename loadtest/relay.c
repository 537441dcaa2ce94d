// relay: an upstream of token streams, and viewers who time what comes of it.
//
//   cc -O2 -o relay relay.c
//   ./relay --upstream 9000 --port 8000 --format openai --rate 20
//
// It answers each POST on the one port with an event stream of the format, whose first events it sends at once, and
// opens viewers on the other. Each token's text is T, the time at which it was sent in microseconds, and a space. It
// does what it is told on stdin, a command a line, and ends with it:
//
//   view PATH  open an event stream there and time its tokens
//   go         from now on send each stream a token, so many times a second
//   mark       say in a line of key=value what has happened since the last mark
//   finish     end all streams in order
//
// Rules:
// 1. It shares its cores with the gateway: one thread, one epoll, one write for a token, nothing kept of one.
// 2. What a socket does not take at once waits, and no more tokens are sent to it meanwhile (`held`).
// 3. Loopback only.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
enum {
  CONNECTIONS_MAX = 50000, READ_SIZE = 64 << 10, REQUEST_MAX = 8 << 10, LINE_MAX = 1024,
  CARRY = 32,                 // of what was read before: a token may be cut
  DIGITS = 16,
  GRAIN_US = 20, LAGS = 500000,  // up to ten seconds
};

#define MARK "\"text\":\"T"

#define CHAT "data: {\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\"chat.completion.chunk\"," \
  "\"created\":1741570283,\"model\":\"gpt-4o-2024-08-06\",\"service_tier\":\"default\"," \
  "\"system_fingerprint\":\"fp_fc9f1d7035\",\"choices\":[{\"index\":0,\"delta\":{%s},\"logprobs\":null," \
  "\"finish_reason\":%s}],\"usage\":null}\n\n"

enum kind { LISTENING, COMMANDS, UPSTREAM, VIEWER };

struct connection {
  enum kind kind;
  int fd;
  bool is_asked;              // of an upstream: the request is whole, and the answer has begun
  int64_t due_ns;
  struct connection *next;    // in the line of those that are due, which all wait for equally long
  size_t len;
  char buf[REQUEST_MAX];      // the request; then what is yet to be sent; of a viewer what may be the half of a token
};

static struct { long upstream, port; const char *format; double rate; } opt = {.format = "openai", .rate = 20};
static struct connection *first, *last, *asked[CONNECTIONS_MAX];
static long n_asked, viewers, sent, received, held, broken;
static uint32_t lags[LAGS];
static int epoll;
static bool going;
static char commands[LINE_MAX];
static size_t commands_len;

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * SECOND + now.tv_nsec;
}

static void fail(const char *what) {
  perror(what);
  exit(2);
}

static struct connection *watch(int fd, enum kind kind) {
  struct connection *c = calloc(1, sizeof *c);
  c->fd = fd;
  c->kind = kind;
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
    fail("relay: epoll_ctl");
  return c;
}

static struct sockaddr_in loopback(long port) {
  return (struct sockaddr_in){
    .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

// ---------------------------------------------------------------- the upstream

static void put(struct connection *c, const char *data, size_t len) {
  ssize_t n = c->len ? 0 : send(c->fd, data, len, MSG_NOSIGNAL);
  if (n < 0)
    n = 0;
  size_t rest = len - n;
  if (rest && c->len + rest <= sizeof c->buf) {
    memcpy(c->buf + c->len, data + n, rest);
    c->len += rest;
  } else if (rest) {
    broken++;
  }
}

static void put_chunk(struct connection *c, const char *block) {
  char chunk[2048];
  put(c, chunk, snprintf(chunk, sizeof chunk, "%zx\r\n%s\r\n", strlen(block), block));
}

static bool is_anthropic(void) { return !strcmp(opt.format, "anthropic"); }

static void begin_answer(struct connection *c) {
  static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    "Transfer-Encoding: chunked\r\n\r\n";
  put(c, head, sizeof head - 1);
  char block[1024];
  if (is_anthropic()) {
    put_chunk(c, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":"
      "\"message\",\"role\":\"assistant\",\"content\":[],\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n");
    put_chunk(c, "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,"
      "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n");
  } else {
    snprintf(block, sizeof block, CHAT, "\"role\":\"assistant\",\"content\":\"\",\"refusal\":null", "null");
    put_chunk(c, block);
  }
}

static void put_token(struct connection *c) {
  char text[64], block[1024];
  snprintf(text, sizeof text, "T%0*lld ", DIGITS, (long long)now_ns() / 1000);
  if (is_anthropic()) {
    snprintf(block, sizeof block, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,"
      "\"delta\":{\"type\":\"text_delta\",\"text\":\"%s\"}}\n\n", text);
  } else {
    char delta[128];
    snprintf(delta, sizeof delta, "\"content\":\"%s\"", text);
    snprintf(block, sizeof block, CHAT, delta, "null");
  }
  put_chunk(c, block);
  sent++;
}

static void end_answer(struct connection *c) {
  char block[1024];
  if (is_anthropic()) {
    put_chunk(c, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n");
    put_chunk(c, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},"
      "\"usage\":{\"output_tokens\":9}}\n\n");
    put_chunk(c, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
  } else {
    snprintf(block, sizeof block, CHAT, "", "\"stop\"");
    put_chunk(c, block);
    put_chunk(c, "data: [DONE]\n\n");
  }
  put(c, "0\r\n\r\n", 5);
}

static void wait_in_line(struct connection *c, int64_t now) {
  c->due_ns = now + (int64_t)(SECOND / opt.rate);
  c->next = NULL;
  if (last)
    last->next = c;
  else
    first = c;
  last = c;
}

static void leave_line(struct connection *c) {
  for (long i = 0; i < n_asked; i++)
    if (asked[i] == c) {
      asked[i] = asked[--n_asked];
      break;
    }
  for (struct connection **at = &first, *before = NULL; *at; before = *at, at = &(*at)->next)
    if (*at == c) {
      *at = c->next;
      if (last == c)
        last = before;
      break;
    }
}

static void send_due(int64_t now) {
  while (first && first->due_ns <= now) {
    struct connection *c = first;
    if (!(first = c->next))
      last = NULL;
    if (c->len) {
      ssize_t n = send(c->fd, c->buf, c->len, MSG_NOSIGNAL);
      if (n > 0)
        memmove(c->buf, c->buf + n, c->len -= n);
    }
    if (c->len)
      held++;
    else
      put_token(c);
    wait_in_line(c, c->due_ns);
  }
}

static void close_connection(struct connection *c) {
  if (c->kind == UPSTREAM)
    leave_line(c);
  close(c->fd);
  free(c);
}

static void read_request(struct connection *c) {
  char ignored[1];
  ssize_t n = c->is_asked ? read(c->fd, ignored, 1) : read(c->fd, c->buf + c->len, sizeof c->buf - 1 - c->len);
  if (n <= 0) {
    close_connection(c);
    return;
  }
  if (c->is_asked)
    return;
  c->len += n;
  c->buf[c->len] = 0;
  char *body = strstr(c->buf, "\r\n\r\n"), *length = strcasestr(c->buf, "\r\ncontent-length:");
  if (!body || (length && strlen(body + 4) < strtoul(length + 17, NULL, 10)))
    return;
  c->is_asked = true;
  c->len = 0;
  asked[n_asked++] = c;
  begin_answer(c);
  if (going)
    wait_in_line(c, now_ns());
}

// ---------------------------------------------------------------- viewers

static void view(const char *path) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in at = loopback(opt.port);
  if (connect(fd, (struct sockaddr *)&at, sizeof at))
    fail("relay: connect");
  char request[LINE_MAX];
  int len = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: relay\r\n\r\n", path);
  if (write(fd, request, len) != len)
    fail("relay: write");
  watch(fd, VIEWER);
  viewers++;
}

static void read_tokens(struct connection *c) {
  static char data[CARRY + READ_SIZE + 1];
  memcpy(data, c->buf, c->len);
  ssize_t n = read(c->fd, data + c->len, READ_SIZE);
  if (n <= 0) {
    viewers--;
    close_connection(c);
    return;
  }
  int64_t now_us = now_ns() / 1000;
  char *end = data + c->len + n, *at = data, *found;
  while ((found = memmem(at, end - at, MARK, sizeof MARK - 1)) && found + sizeof MARK - 1 + DIGITS <= end) {
    at = found + sizeof MARK - 1;
    char digits[DIGITS + 1] = {0};
    memcpy(digits, at, DIGITS);
    int64_t lag = (now_us - strtoll(digits, NULL, 10)) / GRAIN_US;
    lags[lag < 0 ? 0 : lag >= LAGS ? LAGS - 1 : lag]++;
    received++;
  }
  c->len = end - at < CARRY ? end - at : CARRY;
  memcpy(c->buf, end - c->len, c->len);
}

// ---------------------------------------------------------------- commands

static double lag_ms(double share) {
  long wanted = received * share, seen = 0;
  for (long i = 0; i < LAGS; i++)
    if ((seen += lags[i]) > wanted)
      return (i + 1) * GRAIN_US / 1000.0;
  return 0;
}

static void mark(void) {
  printf("streams=%ld viewers=%ld sent=%ld received=%ld held=%ld broken=%ld p50_ms=%.2f p99_ms=%.2f\n", n_asked, viewers,
         sent, received, held, broken, lag_ms(0.5), lag_ms(0.99));
  fflush(stdout);
  sent = received = held = broken = 0;
  memset(lags, 0, sizeof lags);
}

static void obey(const char *line) {
  int64_t now = now_ns();
  if (!strncmp(line, "view ", 5)) {
    view(line + 5);
  } else if (!strcmp(line, "go")) {
    going = true;
    for (long i = 0; i < n_asked; i++) {  // spread over the time between two tokens
      wait_in_line(asked[i], now);
      asked[i]->due_ns = now + (int64_t)(SECOND / opt.rate * i / n_asked);
    }
  } else if (!strcmp(line, "mark")) {
    mark();
  } else if (!strcmp(line, "finish")) {
    first = last = NULL;
    going = false;
    for (long i = 0; i < n_asked; i++)
      end_answer(asked[i]);
  }
}

static void read_commands(void) {
  ssize_t n = read(0, commands + commands_len, sizeof commands - 1 - commands_len);
  if (n <= 0)
    exit(0);
  commands_len += n;
  commands[commands_len] = 0;
  char *line = commands, *end;
  while ((end = strchr(line, '\n'))) {
    *end = 0;
    obey(line);
    line = end + 1;
  }
  memmove(commands, line, commands_len -= line - commands);
}

int main(int argc, char **argv) {
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--upstream"))
      opt.upstream = atol(argv[i + 1]);
    else if (!strcmp(argv[i], "--port"))
      opt.port = atol(argv[i + 1]);
    else if (!strcmp(argv[i], "--format"))
      opt.format = argv[i + 1];
    else if (!strcmp(argv[i], "--rate"))
      opt.rate = atof(argv[i + 1]);
  }
  if ((epoll = epoll_create1(0)) < 0)
    fail("relay: epoll_create1");
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  struct sockaddr_in at = loopback(opt.upstream);
  if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096))
    fail("relay: listen");
  watch(listener, LISTENING);
  watch(0, COMMANDS);
  printf("listening\n");
  fflush(stdout);
  for (;;) {
    struct epoll_event events[256];
    int n = epoll_wait(epoll, events, 256, first ? 1 : -1);
    for (int i = 0; i < n; i++) {
      struct connection *c = events[i].data.ptr;
      if (c->kind == LISTENING) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd >= 0) {
          setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
          watch(fd, UPSTREAM);
        }
      } else if (c->kind == COMMANDS) {
        read_commands();
      } else if (c->kind == UPSTREAM) {
        read_request(c);
      } else {
        read_tokens(c);
      }
    }
    send_due(now_ns());
  }
}
