/* Pelton inside another program: an engine, and the server's APIs without a port.
 *
 * Link with libpelton_embed (cargo build --release -p embed). Functions may be called from any
 * thread, an engine by several threads at once, a reply by one at a time.
 * A function that fails writes a text to *error (unless `error` is null), which
 * pelton_text_free() frees. All texts are UTF-8.
 */
#ifndef PELTON_EMBED_H
#define PELTON_EMBED_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PELTON_EMBED_VERSION 1

typedef struct pelton_engine pelton_engine;
typedef struct pelton_reply pelton_reply;

/* PELTON_EMBED_VERSION of the library. */
uint32_t pelton_embed_version(void);

/* Loads a model. `model`: its name, org/name on the hub, or a path; null: as configured.
 * `settings`: a JSON object of configuration keys and values, or null. They come before the
 * environment and the configuration file, which hold as for `pelton serve`.
 * `program`: the path of the `pelton` program, whose children render chat templates.
 * Null when it fails. */
pelton_engine *pelton_engine_open(const char *model, const char *settings, const char *program,
                                  char **error);

/* Unloads. Replies that are still open end; close them too. */
void pelton_engine_close(pelton_engine *engine);

/* Asks as over HTTP, as in ("POST", "/v1/chat/completions", body, length), and waits until the
 * reply begins. Null when method or path are none; what else is wrong is in the reply, by status. */
pelton_reply *pelton_engine_ask(const pelton_engine *engine, const char *method, const char *path,
                                const uint8_t *body, size_t length, char **error);

/* The status, as of HTTP. */
uint32_t pelton_reply_status(const pelton_reply *reply);

/* Waits for the next bytes of the body and writes at most `room` of them; with "stream": true they
 * come as they are made. 0: it has ended; -1: it broke off. */
ptrdiff_t pelton_reply_read(pelton_reply *reply, uint8_t *into, size_t room, char **error);

/* Ends what is still being computed for it. */
void pelton_reply_close(pelton_reply *reply);

void pelton_text_free(char *text);

#ifdef __cplusplus
}
#endif

#endif
