/* console.c: the console on an ANSI terminal, keys, and control handlers. */
#include "win32.h"

#include "conio.h"

#include <termios.h>

enum { PLAIN = FOREGROUND_RED | FOREGROUND_GREEN | FOREGROUND_BLUE, COLUMNS = 512, ROWS = 256 };

HANDLE GetStdHandle(DWORD which)
{
    if (which == STD_INPUT_HANDLE || which == STD_OUTPUT_HANDLE || which == STD_ERROR_HANDLE)
        return (HANDLE)(intptr_t)(int32_t)which;
    SetLastError(ERROR_INVALID_HANDLE);
    return INVALID_HANDLE_VALUE;
}

/* ---- Drawing --------------------------------------------------------------------------------------------------------- */

static pthread_mutex_t drawing = PTHREAD_MUTEX_INITIALIZER; /* guards the variables below */
static WORD colours = PLAIN;                                /* of text */
static COORD cursor;                                        /* as last set */
static struct {
    char c; /* 0: not known */
    WORD attributes;
} cells[ROWS][COLUMNS]; /* the text drawn so far */

/* stream returns the stream of a console: drawn text must keep its order with printed text. */
static FILE *stream(HANDLE console)
{
    int fd = win32_descriptor(console);

    return fd == STDOUT_FILENO ? stdout : fd == STDERR_FILENO ? stderr : NULL;
}

/* terminal returns the stream if a terminal shows it. *ok reports whether the handle is a console's at all. */
static FILE *terminal(HANDLE console, BOOL *ok)
{
    FILE *f = stream(console);

    *ok = f != NULL || fails(ERROR_INVALID_HANDLE);
    return f != NULL && isatty(fileno(f)) ? f : NULL;
}

/* sgr writes the sequence for attributes. The bits of a colour are blue, green, red; ANSI counts red, green, blue. */
static void sgr(FILE *f, WORD a)
{
    static const char ansi[] = {0, 4, 2, 6, 1, 5, 3, 7};

    fputs("\033[0", f);
    if ((a & 0x77) != PLAIN || a & FOREGROUND_INTENSITY)
        fprintf(f, ";%d", ansi[a & 7] + (a & FOREGROUND_INTENSITY ? 90 : 30));
    if (a & 0xF0)
        fprintf(f, ";%d", ansi[a >> 4 & 7] + (a & BACKGROUND_INTENSITY ? 100 : 40));
    if (a & COMMON_LVB_REVERSE_VIDEO)
        fputs(";7", f);
    if (a & COMMON_LVB_UNDERSCORE)
        fputs(";4", f);
    fputc('m', f);
}

BOOL SetConsoleTextAttribute(HANDLE console, WORD attributes)
{
    BOOL ok;
    FILE *f = terminal(console, &ok);

    if (!ok)
        return FALSE;
    pthread_mutex_lock(&drawing);
    colours = attributes;
    if (f != NULL)
        sgr(f, attributes);
    pthread_mutex_unlock(&drawing);
    return TRUE;
}

/* size_of returns the size of the window. */
static COORD size_of(HANDLE console)
{
    struct winsize w;
    COORD size = {80, 25};

    if (ioctl(win32_descriptor(console), TIOCGWINSZ, &w) == 0 && w.ws_row > 0 && w.ws_col > 0) {
        size.X = (SHORT)(w.ws_col < COLUMNS ? w.ws_col : COLUMNS);
        size.Y = (SHORT)(w.ws_row < ROWS ? w.ws_row : ROWS);
    }
    return size;
}

BOOL GetConsoleScreenBufferInfo(HANDLE console, PCONSOLE_SCREEN_BUFFER_INFO info)
{
    BOOL ok;

    if (terminal(console, &ok) == NULL)
        return fails(ERROR_INVALID_HANDLE);
    memset(info, 0, sizeof(*info));
    info->dwSize = info->dwMaximumWindowSize = size_of(console);
    info->srWindow.Right = (SHORT)(info->dwSize.X - 1);
    info->srWindow.Bottom = (SHORT)(info->dwSize.Y - 1);
    pthread_mutex_lock(&drawing);
    info->dwCursorPosition = cursor;
    info->wAttributes = colours;
    pthread_mutex_unlock(&drawing);
    return TRUE;
}

BOOL SetConsoleCursorPosition(HANDLE console, COORD position)
{
    BOOL ok;
    FILE *f = terminal(console, &ok);

    if (!ok)
        return FALSE;
    pthread_mutex_lock(&drawing);
    cursor = position;
    if (f != NULL)
        fprintf(f, "\033[%d;%dH", position.Y + 1, position.X + 1);
    pthread_mutex_unlock(&drawing);
    return TRUE;
}

BOOL SetConsoleCursorInfo(HANDLE console, const CONSOLE_CURSOR_INFO *info)
{
    BOOL ok;
    FILE *f = terminal(console, &ok);

    if (f != NULL)
        fputs(info->bVisible ? "\033[?25h" : "\033[?25l", f);
    return ok;
}

BOOL SetConsoleTitle(LPCSTR title)
{
    if (isatty(STDOUT_FILENO)) {
        fputs("\033]0;", stdout);
        for (; *title != 0; title++)
            if ((unsigned char)*title >= ' ')
                fputc(*title, stdout);
        fputs("\007", stdout);
    }
    return TRUE;
}

/*
 * draw writes count cells from a place on, and continues in the next line as a console does. NULL for text or
 * attributes leaves the known ones. The cursor and the colours of text stay.
 */
static BOOL draw(HANDLE console, const char *text, size_t step, const WORD *attributes, DWORD count, COORD at,
                 LPDWORD written)
{
    BOOL ok;
    FILE *f = terminal(console, &ok);
    COORD size = size_of(console);
    DWORD i;
    int x = at.X, y = at.Y;

    if (!ok)
        return FALSE;
    if (x < 0 || y < 0)
        return fails(ERROR_INVALID_PARAMETER);
    pthread_mutex_lock(&drawing);
    if (f != NULL)
        fputs("\0337", f);
    for (i = 0; i < count && f != NULL; i++, x++) {
        if (x >= size.X) {
            x = 0;
            y++;
        }
        if (y >= size.Y)
            break;
        if (text != NULL)
            cells[y][x].c = text[i * step];
        if (attributes != NULL)
            cells[y][x].attributes = *attributes;
        else
            cells[y][x].attributes = colours;
        if (cells[y][x].c == 0)
            continue;
        fprintf(f, "\033[%d;%dH", y + 1, x + 1);
        sgr(f, cells[y][x].attributes);
        fputc((unsigned char)cells[y][x].c < ' ' ? ' ' : cells[y][x].c, f);
    }
    if (f != NULL) {
        fputs("\0338", f);
        sgr(f, colours);
        fflush(f);
    }
    pthread_mutex_unlock(&drawing);
    if (written != NULL)
        *written = f == NULL ? count : i;
    return TRUE;
}

BOOL FillConsoleOutputCharacter(HANDLE console, CHAR c, DWORD count, COORD at, LPDWORD written)
{
    return draw(console, &c, 0, NULL, count, at, written);
}

BOOL FillConsoleOutputAttribute(HANDLE console, WORD attributes, DWORD count, COORD at, LPDWORD written)
{
    return draw(console, NULL, 0, &attributes, count, at, written);
}

BOOL WriteConsoleOutputCharacter(HANDLE console, LPCSTR text, DWORD count, COORD at, LPDWORD written)
{
    return draw(console, text, 1, NULL, count, at, written);
}

BOOL WriteConsoleOutput(HANDLE console, const CHAR_INFO *from, COORD size, COORD first, PSMALL_RECT region)
{
    COORD at;

    for (at.Y = region->Top; at.Y <= region->Bottom && first.Y + at.Y - region->Top < size.Y; at.Y++)
        for (at.X = region->Left; at.X <= region->Right && first.X + at.X - region->Left < size.X; at.X++) {
            const CHAR_INFO *cell = from + (first.Y + at.Y - region->Top) * size.X + first.X + at.X - region->Left;

            if (!draw(console, &cell->Char.AsciiChar, 0, &cell->Attributes, 1, at, NULL))
                return FALSE;
        }
    return TRUE;
}

BOOL WriteConsole(HANDLE console, const void *text, DWORD count, LPDWORD written, LPVOID reserved)
{
    BOOL ok;
    FILE *f = terminal(console, &ok);

    (void)reserved;
    if (f == NULL)
        return fails(ERROR_INVALID_HANDLE); /* as on Windows: redirected output needs WriteFile */
    count = (DWORD)fwrite(text, 1, count, f);
    fflush(f);
    if (written != NULL)
        *written = count;
    return TRUE;
}

/* ---- Input ------------------------------------------------------------------------------------------------------------- */

BOOL GetConsoleMode(HANDLE console, LPDWORD mode)
{
    int fd = win32_descriptor(console);
    struct termios t;

    if (fd < 0 || tcgetattr(fd, &t) != 0)
        return fails(ERROR_INVALID_HANDLE);
    if (fd == STDIN_FILENO)
        *mode = (t.c_lflag & ISIG ? ENABLE_PROCESSED_INPUT : 0) | (t.c_lflag & ICANON ? ENABLE_LINE_INPUT : 0) |
                (t.c_lflag & ECHO ? ENABLE_ECHO_INPUT : 0);
    else
        *mode = ENABLE_PROCESSED_OUTPUT | ENABLE_WRAP_AT_EOL_OUTPUT | ENABLE_VIRTUAL_TERMINAL_PROCESSING;
    return TRUE;
}

BOOL SetConsoleMode(HANDLE console, DWORD mode)
{
    int fd = win32_descriptor(console);
    struct termios t;

    if (fd < 0 || tcgetattr(fd, &t) != 0)
        return fails(ERROR_INVALID_HANDLE);
    if (fd != STDIN_FILENO)
        return TRUE;
    t.c_lflag &= ~(tcflag_t)(ISIG | ICANON | ECHO);
    t.c_lflag |= (mode & ENABLE_PROCESSED_INPUT ? ISIG : 0) | (mode & ENABLE_LINE_INPUT ? ICANON : 0) |
                 (mode & ENABLE_ECHO_INPUT ? ECHO : 0);
    return tcsetattr(fd, TCSANOW, &t) == 0 || fails(win32_error(errno));
}

BOOL SetConsoleOutputCP(UINT page)
{
    (void)page;
    return TRUE;
}

UINT GetConsoleOutputCP(void)
{
    return CP_UTF8;
}

/* raw makes the terminal deliver single keys; *before is its previous state. FALSE: there is no terminal. */
static BOOL raw(struct termios *before)
{
    struct termios t;

    if (tcgetattr(STDIN_FILENO, before) != 0)
        return FALSE;
    t = *before;
    t.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    return tcsetattr(STDIN_FILENO, TCSANOW, &t) == 0;
}

int _kbhit(void)
{
    struct pollfd p = {STDIN_FILENO, POLLIN, 0};
    struct termios before;
    BOOL terminal_ = raw(&before);
    int n = poll(&p, 1, 0);

    if (terminal_)
        tcsetattr(STDIN_FILENO, TCSANOW, &before);
    return n == 1 && p.revents & POLLIN;
}

int _getch(void)
{
    struct termios before;
    BOOL terminal_ = raw(&before);
    unsigned char c;
    ssize_t n;

    fflush(stdout);
    do
        n = read(STDIN_FILENO, &c, 1);
    while (n < 0 && errno == EINTR);
    if (terminal_)
        tcsetattr(STDIN_FILENO, TCSANOW, &before);
    return n == 1 ? c : EOF;
}

int _getche(void)
{
    int c = _getch();

    return c == EOF ? EOF : _putch(c);
}

int _putch(int c)
{
    int result = putchar(c);

    fflush(stdout);
    return result;
}

/* ---- Control handlers ------------------------------------------------------------------------------------------------ */

enum { HANDLERS = 32 };

static const struct {
    int signal;
    DWORD event;
} events[] = {
    {SIGINT, CTRL_C_EVENT}, {SIGQUIT, CTRL_BREAK_EVENT}, {SIGHUP, CTRL_CLOSE_EVENT}, {SIGTERM, CTRL_SHUTDOWN_EVENT},
};

static pthread_mutex_t handling = PTHREAD_MUTEX_INITIALIZER; /* guards the variables below */
static PHANDLER_ROUTINE handlers[HANDLERS];
static int count;
static BOOL ignored; /* control-C is, by SetConsoleCtrlHandler(NULL, TRUE) */
static int pipe_ends[2] = {-1, -1};

static void pass_on(int number)
{
    unsigned char b = (unsigned char)number;
    int before = errno;

    (void)!write(pipe_ends[1], &b, 1); /* if the pipe is full, the thread will wake anyway */
    errno = before;
}

/* handled calls the handlers for a signal, the last one first, and reports whether one has handled it. */
static BOOL handled(int number)
{
    PHANDLER_ROUTINE now[HANDLERS];
    DWORD event = CTRL_C_EVENT;
    size_t k;
    int i;

    for (k = 0; k < ARRAYSIZE(events); k++)
        if (events[k].signal == number)
            event = events[k].event;
    pthread_mutex_lock(&handling);
    memcpy(now, handlers, sizeof(now));
    i = count;
    if (ignored && number == SIGINT) {
        pthread_mutex_unlock(&handling);
        return TRUE;
    }
    pthread_mutex_unlock(&handling);
    while (i > 0)
        if (now[--i](event))
            return TRUE;
    return FALSE;
}

static void *serve(void *unused)
{
    unsigned char number;
    ssize_t n;

    while ((n = read(pipe_ends[0], &number, 1)) == 1 || (n < 0 && errno == EINTR))
        if (n == 1 && !handled(number)) {
            sigset_t one;

            signal(number, SIG_DFL); /* end the process by this very signal */
            sigemptyset(&one);
            sigaddset(&one, number);
            pthread_sigmask(SIG_UNBLOCK, &one, NULL);
            raise(number);
        }
    return unused;
}

/* begin makes signals go to the handlers. The caller holds the lock. */
static BOOL begin(void)
{
    struct sigaction action;
    size_t k;

    if (pipe_ends[0] >= 0)
        return TRUE;
    if (pipe2(pipe_ends, O_CLOEXEC) != 0)
        return fails(win32_error(errno));
    (void)fcntl(pipe_ends[1], F_SETFL, O_NONBLOCK);
    if (!win32_helper(serve, NULL)) {
        close(pipe_ends[0]);
        close(pipe_ends[1]);
        pipe_ends[0] = -1;
        return FALSE;
    }
    memset(&action, 0, sizeof(action));
    action.sa_handler = pass_on;
    action.sa_flags = SA_ONSTACK | SA_RESTART;
    for (k = 0; k < ARRAYSIZE(events); k++)
        (void)sigaction(events[k].signal, &action, NULL);
    return TRUE;
}

BOOL SetConsoleCtrlHandler(PHANDLER_ROUTINE handler, BOOL add)
{
    DWORD error = ERROR_SUCCESS;
    int i;

    pthread_mutex_lock(&handling);
    if (!begin())
        error = GetLastError();
    else if (handler == NULL)
        ignored = add;
    else if (add && count == HANDLERS)
        error = ERROR_NOT_ENOUGH_MEMORY;
    else if (add)
        handlers[count++] = handler;
    else {
        for (i = count - 1; i >= 0 && handlers[i] != handler; i--)
            ;
        if (i < 0)
            error = ERROR_INVALID_PARAMETER;
        else
            memmove(handlers + i, handlers + i + 1, (size_t)(--count - i) * sizeof(handlers[0]));
    }
    pthread_mutex_unlock(&handling);
    return error == ERROR_SUCCESS || fails(error);
}

BOOL GenerateConsoleCtrlEvent(DWORD event, DWORD group)
{
    if (event != CTRL_C_EVENT && event != CTRL_BREAK_EVENT)
        return fails(ERROR_INVALID_PARAMETER);
    return kill(group == 0 ? getpid() : -(pid_t)group, event == CTRL_C_EVENT ? SIGINT : SIGQUIT) == 0 ||
           fails(win32_error(errno));
}
