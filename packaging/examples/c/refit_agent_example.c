/* Ask the refit-agent service for an engine from C, with libcurl.
 *
 *   cc -std=c99 -Wall -Wextra -o refit_agent_example refit_agent_example.c -lcurl
 *   ./refit_agent_example /opt/app/bundle denoiser
 *
 * Prints the engine's path on standard output and progress on standard error. Exit code 0: done; 1: the
 * service says that it cannot be made; 8: there is no service (start `refit-agent path BUNDLE MODEL` instead,
 * which works without one).
 */
#define _XOPEN_SOURCE 700
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- as much JSON as it takes: find a value by its path, write a string ---- */

static const char *skip_space(const char *p) { return p + strspn(p, " \t\r\n"); }

static const char *skip_string(const char *p) { /* p is at the opening quote */
    for (p++; *p && *p != '"'; p++)
        if (*p == '\\' && p[1]) p++;
    return *p ? p + 1 : p;
}

static const char *skip_value(const char *p) {
    p = skip_space(p);
    if (*p == '"') return skip_string(p);
    if (*p != '{' && *p != '[') return p + strcspn(p, ",]} \t\r\n");
    for (int depth = 0; *p;) {
        if (*p == '"') { p = skip_string(p); continue; }
        if (*p == '{' || *p == '[') depth++;
        if (*p == '}' || *p == ']') depth--;
        p++;
        if (depth == 0) break;
    }
    return p;
}

/* Where the value of a key of this object begins, or NULL. */
static const char *member(const char *object, const char *key) {
    const char *p = skip_space(object);
    if (*p != '{') return NULL;
    for (p = skip_space(p + 1); *p == '"'; p = skip_space(p + 1)) {
        const char *name = p + 1;
        p = skip_space(skip_string(p));
        if (*p != ':') return NULL;
        const char *value = skip_space(p + 1);
        if (!strncmp(name, key, strlen(key)) && name[strlen(key)] == '"') return value;
        p = skip_space(skip_value(value));
        if (*p != ',') return NULL;
    }
    return NULL;
}

static unsigned unhex(const char *p) {
    char digits[5] = {0};
    memcpy(digits, p, strnlen(p, 4));
    return (unsigned)strtoul(digits, NULL, 16);
}

/* The string at p, unescaped, to be freed by the caller; NULL if there is none. */
static char *text(const char *p) {
    if (!p || *p != '"') return NULL;
    char *out = malloc(strlen(p) + 1), *q = out;
    if (!out) return NULL;
    for (p++; *p && *p != '"'; p++) {
        if (*p != '\\') { *q++ = *p; continue; }
        p++;
        if (*p == 'u' && strnlen(p, 5) == 5) {
            unsigned c = unhex(p + 1);
            p += 4;
            if (c >= 0xD800 && c < 0xDC00 && p[1] == '\\' && p[2] == 'u' && strnlen(p, 7) == 7) {
                c = 0x10000 + ((c - 0xD800) << 10) + (unhex(p + 3) - 0xDC00);
                p += 6;
            }
            if (c < 0x80) *q++ = (char)c;
            else if (c < 0x800) { *q++ = (char)(0xC0 | c >> 6); *q++ = (char)(0x80 | (c & 63)); }
            else if (c < 0x10000) { *q++ = (char)(0xE0 | c >> 12); *q++ = (char)(0x80 | (c >> 6 & 63)); *q++ = (char)(0x80 | (c & 63)); }
            else { *q++ = (char)(0xF0 | c >> 18); *q++ = (char)(0x80 | (c >> 12 & 63)); *q++ = (char)(0x80 | (c >> 6 & 63)); *q++ = (char)(0x80 | (c & 63)); }
        } else if (*p) {
            const char *from = "nrtbf", *to = "\n\r\t\b\f", *at = strchr(from, *p);
            *q++ = at ? to[at - from] : *p;
        } else break;
    }
    *q = 0;
    return out;
}

static void put_string(FILE *out, const char *s) {
    fputc('"', out);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\') fprintf(out, "\\%c", *s);
        else if ((unsigned char)*s < 0x20) fprintf(out, "\\u%04x", *s);
        else fputc(*s, out);
    }
    fputc('"', out);
}

/* ---- the service ---- */

struct answer {
    char *data; /* what has come of the present line */
    size_t size;
    char *path, *lease, *detail, *hint;
};

/* One line of the stream, or the whole document of a hit or a problem. */
static void on_document(struct answer *a, const char *line) {
    char *event = text(member(line, "event"));
    if (event && !strcmp(event, "progress")) {
        char *words = text(member(line, "text"));
        const char *fraction = member(line, "fraction");
        fprintf(stderr, "%3.0f%% %s\n", 100 * (fraction ? strtod(fraction, NULL) : 0), words ? words : "");
        free(words);
    } else if (member(line, "path") && member(line, "lease")) {
        a->path = text(member(line, "path"));
        a->lease = text(member(member(line, "lease"), "id"));
    } else if (member(line, "detail")) {
        a->detail = text(member(line, "detail"));
        a->hint = text(member(line, "hint"));
    }
    free(event);
}

static size_t on_data(char *data, size_t one, size_t count, void *context) {
    struct answer *a = context;
    size_t size = one * count;
    char *grown = realloc(a->data, a->size + size + 1);
    if (!grown) return 0;
    a->data = grown;
    memcpy(a->data + a->size, data, size);
    a->size += size;
    a->data[a->size] = 0;
    for (char *end; (end = memchr(a->data, '\n', a->size));) {
        *end = 0;
        on_document(a, a->data);
        a->size -= (size_t)(end + 1 - a->data);
        memmove(a->data, end + 1, a->size + 1);
    }
    return size;
}

static void socket_path(char *out, size_t size) {
    const char *given = getenv("REFIT_AGENT_SOCKET"), *root = getenv("REFIT_AGENT_HOME"), *run = getenv("XDG_RUNTIME_DIR");
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char user[64];
    struct stat found;
    snprintf(user, sizeof user, "/run/user/%u", (unsigned)geteuid());
    if (given) snprintf(out, size, "%s", given);
    else if (root && *root) snprintf(out, size, "%s/run/agent.sock", root);
    else if (run && *run == '/') snprintf(out, size, "%s/refit-agent/agent.sock", run);
    else if (stat(user, &found) == 0 && found.st_uid == geteuid()) snprintf(out, size, "%s/refit-agent/agent.sock", user);
    else if (state && *state) snprintf(out, size, "%s/refit-agent/run/agent.sock", state);
    else snprintf(out, size, "%s/.local/state/refit-agent/run/agent.sock", home ? home : "");
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s BUNDLE MODEL\n", argv[0]);
        return 2;
    }
    char socket[512], *body = NULL;
    size_t body_size = 0;
    socket_path(socket, sizeof socket);
    /* The bundle's path must be absolute, for the service has a folder of its own; the id of a registered bundle stays as
     * it is. With pid, the lease ends with this process at the latest. */
    char *bundle = realpath(argv[1], NULL);
    FILE *out = open_memstream(&body, &body_size);
    if (!out) return 1;
    fputs("{\"bundle\":", out);
    put_string(out, bundle ? bundle : argv[1]);
    fputs(",\"model\":", out);
    put_string(out, argv[2]);
    fprintf(out, ",\"ttl_s\":300,\"pid\":%ld}", (long)getpid());
    fclose(out);
    free(bundle);

    curl_global_init(CURL_GLOBAL_NOTHING);
    CURL *curl = curl_easy_init();
    if (!curl) return 1;
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    struct answer answer = {0};
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, socket);
    curl_easy_setopt(curl, CURLOPT_URL, "http://localhost/v1/engines:ensure");
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*"); /* http_proxy is none of this call's business */
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
    /* The service says something every two seconds: less than a byte a second for ten means that it hangs. */
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, 10L);
    CURLcode code = curl_easy_perform(curl);
    if (answer.size) on_document(&answer, answer.data);

    int result = 1;
    if (answer.path) {
        printf("%s\n", answer.path);
        fflush(stdout);
        result = 0;
        /* ... load the engine here; the lease keeps it from eviction until then ... */
        if (answer.lease) {
            char url[256];
            snprintf(url, sizeof url, "http://localhost/v1/leases/%s", answer.lease);
            curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L);
            curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, "DELETE");
            curl_easy_setopt(curl, CURLOPT_URL, url);
            curl_easy_perform(curl);
        }
    } else if (answer.detail) {
        fprintf(stderr, "%s\n%s\n", answer.detail, answer.hint ? answer.hint : "");
    } else {
        fprintf(stderr, "no service at %s: %s\n", socket, curl_easy_strerror(code));
        result = 8;
    }
    free(answer.data), free(answer.path), free(answer.lease), free(answer.detail), free(answer.hint), free(body);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    curl_global_cleanup();
    return result;
}
