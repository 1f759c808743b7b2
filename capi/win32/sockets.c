/* sockets.c: the parts of Winsock that sockets of Linux lack, and the tables of sockets with their processes. */
#include "win32.h"

#include "iphlpapi.h"

#include <dirent.h>

#undef setsockopt

/* ---- Winsock ---- */

int WSAStartup(WORD version, LPWSADATA data)
{
    struct sigaction action;

    memset(data, 0, sizeof(*data));
    data->wVersion = version;
    data->wHighVersion = MAKEWORD(2, 2);
    strcpy(data->szDescription, "sockets of Linux");
    if (LOBYTE(version) < 1 || LOBYTE(version) > 2)
        return WSAVERNOTSUPPORTED;
    if (sigaction(SIGPIPE, NULL, &action) == 0 && action.sa_handler != SIG_IGN) {
        memset(&action, 0, sizeof(action)); /* there is no such signal on Windows: send fails */
        action.sa_handler = SIG_IGN;
        (void)sigaction(SIGPIPE, &action, NULL);
    }
    return 0;
}

int WSACleanup(void)
{
    return 0;
}

static const struct {
    int number, error;
} errors[] = {
    {EINTR, WSAEINTR},
    {EBADF, WSAENOTSOCK},
    {EACCES, WSAEACCES},
    {EPERM, WSAEACCES},
    {EFAULT, WSAEFAULT},
    {EINVAL, WSAEINVAL},
    {EMFILE, WSAEMFILE},
    {ENFILE, WSAEMFILE},
    {EAGAIN, WSAEWOULDBLOCK},
    {EINPROGRESS, WSAEWOULDBLOCK}, /* Winsock's error for a nonblocking connect */
    {EALREADY, WSAEALREADY},
    {ENOTSOCK, WSAENOTSOCK},
    {EDESTADDRREQ, WSAEDESTADDRREQ},
    {EMSGSIZE, WSAEMSGSIZE},
    {EPROTOTYPE, WSAEPROTOTYPE},
    {ENOPROTOOPT, WSAENOPROTOOPT},
    {EPROTONOSUPPORT, WSAEPROTONOSUPPORT},
    {EOPNOTSUPP, WSAEOPNOTSUPP},
    {EAFNOSUPPORT, WSAEAFNOSUPPORT},
    {EADDRINUSE, WSAEADDRINUSE},
    {EADDRNOTAVAIL, WSAEADDRNOTAVAIL},
    {ENETDOWN, WSAENETDOWN},
    {ENETUNREACH, WSAENETUNREACH},
    {ENETRESET, WSAENETRESET},
    {ECONNABORTED, WSAECONNABORTED},
    {ECONNRESET, WSAECONNRESET},
    {EPIPE, WSAECONNRESET},
    {ENOBUFS, WSAENOBUFS},
    {ENOMEM, WSAENOBUFS},
    {EISCONN, WSAEISCONN},
    {ENOTCONN, WSAENOTCONN},
    {ESHUTDOWN, WSAESHUTDOWN},
    {ETIMEDOUT, WSAETIMEDOUT},
    {ECONNREFUSED, WSAECONNREFUSED},
    {EHOSTUNREACH, WSAEHOSTUNREACH},
};

int WSAGetLastError(void)
{
    size_t i;

    for (i = 0; i < ARRAYSIZE(errors); i++)
        if (errors[i].number == errno)
            return errors[i].error;
    return errno == 0 ? 0 : (int)win32_error(errno);
}

void WSASetLastError(int error)
{
    size_t i;

    for (i = 0; i < ARRAYSIZE(errors) && errors[i].error != error; i++)
        ;
    errno = i < ARRAYSIZE(errors) ? errors[i].number : error == 0 ? 0 : EIO;
    SetLastError((DWORD)error);
}

int closesocket(SOCKET s)
{
    return CloseHandle((HANDLE)(uintptr_t)s) ? 0 : SOCKET_ERROR;
}

int ioctlsocket(SOCKET s, long command, u_long *argument)
{
    int value = (int)*argument, result = ioctl(s, (unsigned long)command, &value);

    if (result == 0)
        *argument = (u_long)value;
    return result;
}

int win32_setsockopt(SOCKET s, int level, int name, const void *value, int size)
{
    struct timeval t;
    DWORD milliseconds;

    if (level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO) && size == (int)sizeof(milliseconds)) {
        memcpy(&milliseconds, value, sizeof(milliseconds));
        t.tv_sec = (time_t)(milliseconds / 1000);
        t.tv_usec = (suseconds_t)(milliseconds % 1000) * 1000;
        return setsockopt(s, level, name, &t, sizeof(t));
    }
    return setsockopt(s, level, name, value, (socklen_t)size);
}

/* ---- The owners of sockets: /proc/PID/fd -------------------------------------------------------------------------- */

struct owner {
    unsigned long inode;
    DWORD pid;
};

struct owners {
    struct owner *list;
    size_t count, room;
};

static int by_inode(const void *a, const void *b)
{
    const struct owner *x = (const struct owner *)a, *y = (const struct owner *)b;

    if (x->inode != y->inode)
        return x->inode < y->inode ? -1 : 1;
    return x->pid < y->pid ? -1 : x->pid > y->pid; /* the first of those that share a socket counts */
}

static BOOL add_owner(struct owners *o, unsigned long inode, DWORD pid)
{
    struct owner *more;

    if (o->count == o->room) {
        o->room = o->room == 0 ? 256 : 2 * o->room;
        more = (struct owner *)realloc(o->list, o->room * sizeof(*more));
        if (more == NULL)
            return FALSE;
        o->list = more;
    }
    o->list[o->count].inode = inode;
    o->list[o->count++].pid = pid;
    return TRUE;
}

/* add_process adds the sockets of a process; one that has ended, or is not visible, has none. */
static BOOL add_process(struct owners *o, DWORD pid)
{
    char path[300], target[64];
    struct dirent *e;
    unsigned long inode;
    BOOL ok = TRUE;
    ssize_t n;
    DIR *fds;

    sprintf(path, "/proc/%u/fd", pid);
    fds = opendir(path);
    while (ok && fds != NULL && (e = readdir(fds)) != NULL) {
        n = readlinkat(dirfd(fds), e->d_name, target, sizeof(target) - 1);
        if (n <= 0)
            continue;
        target[n] = 0;
        if (sscanf(target, "socket:[%lu]", &inode) == 1)
            ok = add_owner(o, inode, pid);
    }
    if (fds != NULL)
        closedir(fds);
    return ok;
}

static BOOL find_owners(struct owners *o)
{
    DIR *processes = opendir("/proc");
    struct dirent *e;
    BOOL ok = processes != NULL;

    while (ok && (e = readdir(processes)) != NULL)
        if (atoi(e->d_name) > 0)
            ok = add_process(o, (DWORD)atoi(e->d_name));
    if (processes != NULL)
        closedir(processes);
    if (o->count > 0)
        qsort(o->list, o->count, sizeof(*o->list), by_inode);
    return ok;
}

static DWORD owner_of(const struct owners *o, unsigned long inode)
{
    size_t low = 0, high = o->count, middle;

    while (low < high) {
        middle = (low + high) / 2;
        if (o->list[middle].inode < inode)
            low = middle + 1;
        else
            high = middle;
    }
    return inode != 0 && low < o->count && o->list[low].inode == inode ? o->list[low].pid : 0;
}

/* ---- The sockets: /proc/net -------------------------------------------------------------------------------------------- */

/* A socket. Addresses in network order, ports too. */
struct row {
    DWORD local[4], remote[4];
    WORD local_port, remote_port;
    DWORD state, pid;
    unsigned long inode;
};

struct rows {
    struct row *list;
    size_t count, room;
};

/* Windows' values for the states of Linux, which begin with 1. */
static const DWORD states[] = {
    0,
    MIB_TCP_STATE_ESTAB,
    MIB_TCP_STATE_SYN_SENT,
    MIB_TCP_STATE_SYN_RCVD,
    MIB_TCP_STATE_FIN_WAIT1,
    MIB_TCP_STATE_FIN_WAIT2,
    MIB_TCP_STATE_TIME_WAIT,
    MIB_TCP_STATE_CLOSED,
    MIB_TCP_STATE_CLOSE_WAIT,
    MIB_TCP_STATE_LAST_ACK,
    MIB_TCP_STATE_LISTEN,
    MIB_TCP_STATE_CLOSING,
    MIB_TCP_STATE_SYN_RCVD,
};

/* address reads an address as the kernel prints it: words of 32 bits, each as a number in the machine's order. */
static BOOL address(const char **text, int words, DWORD *out, WORD *port)
{
    unsigned long p;
    char word[9], *end;
    int i;

    *text += strspn(*text, " ");
    for (i = 0; i < words; i++) {
        if (strspn(*text, "0123456789ABCDEF") < 8)
            return FALSE;
        memcpy(word, *text, 8);
        word[8] = 0;
        out[i] = (DWORD)strtoul(word, NULL, 16);
        *text += 8;
    }
    if (**text != ':')
        return FALSE;
    p = strtoul(*text + 1, &end, 16);
    *text = end;
    *port = htons((WORD)p);
    return TRUE;
}

/* parse reads a line of the kernel's table. FALSE: the line is the heading. */
static BOOL parse(const char *line, BOOL v6, struct row *row)
{
    const char *text = strchr(line, ':');
    unsigned state;

    memset(row, 0, sizeof(*row));
    if (text == NULL)
        return FALSE;
    text++;
    if (!address(&text, v6 ? 4 : 1, row->local, &row->local_port) ||
        !address(&text, v6 ? 4 : 1, row->remote, &row->remote_port) ||
        sscanf(text, " %x %*s %*s %*s %*u %*u %lu", &state, &row->inode) != 2)
        return FALSE;
    row->state = state < ARRAYSIZE(states) ? states[state] : 0;
    return TRUE;
}

static BOOL mapped(const DWORD *a)
{
    return a[0] == 0 && a[1] == 0 && a[2] == htonl(0xFFFF);
}

/* keep reports whether an IPv6 socket belongs in a family's table; it turns one that talks IPv4 into one of IPv4. */
static BOOL keep(struct row *row, BOOL v6)
{
    BOOL v4 = mapped(row->local) || mapped(row->remote);

    if (!v4)
        return v6;
    row->local[0] = row->local[3];
    row->remote[0] = row->remote[3];
    return !v6;
}

/* read_table adds the sockets of one of the kernel's tables to those of a family. */
static DWORD read_table(const char *name, BOOL six, BOOL v6, struct rows *rows)
{
    char path[64], line[512];
    struct row row, *more;
    DWORD error = NO_ERROR;
    FILE *f;

    sprintf(path, "/proc/thread-self/net/%s", name);
    f = fopen(path, "re");
    if (f == NULL)
        return errno == ENOENT ? NO_ERROR : win32_error(errno); /* a system without IPv6 */
    while (error == NO_ERROR && fgets(line, sizeof(line), f) != NULL) {
        if (!parse(line, six, &row) || (six && !keep(&row, v6)))
            continue;
        if (rows->count == rows->room) {
            rows->room = rows->room == 0 ? 64 : 2 * rows->room;
            more = (struct row *)realloc(rows->list, rows->room * sizeof(*more));
            if (more == NULL) {
                error = ERROR_NOT_ENOUGH_MEMORY;
                break;
            }
            rows->list = more;
        }
        rows->list[rows->count++] = row;
    }
    fclose(f);
    return error;
}

static int by_address(const void *a, const void *b)
{
    const struct row *x = (const struct row *)a, *y = (const struct row *)b;
    int order = memcmp(x->local, y->local, sizeof(x->local));

    return order != 0 ? order : (int)ntohs(x->local_port) - (int)ntohs(y->local_port);
}

/* collect reads the sockets of a family with their processes. The caller frees the list. */
static DWORD collect(const char *four, const char *six, BOOL v6, BOOL order, struct rows *rows)
{
    struct owners owners = {NULL, 0, 0};
    DWORD error = NO_ERROR;
    size_t i;

    memset(rows, 0, sizeof(*rows));
    if (!v6)
        error = read_table(four, FALSE, FALSE, rows);
    if (error == NO_ERROR)
        error = read_table(six, TRUE, v6, rows);
    if (error == NO_ERROR && !find_owners(&owners))
        error = ERROR_NOT_ENOUGH_MEMORY;
    else if (error == NO_ERROR)
        for (i = 0; i < rows->count; i++)
            rows->list[i].pid = owner_of(&owners, rows->list[i].inode);
    free(owners.list);
    if (error != NO_ERROR) {
        free(rows->list);
        rows->list = NULL;
        return error;
    }
    if (order && rows->count > 0)
        qsort(rows->list, rows->count, sizeof(*rows->list), by_address);
    return NO_ERROR;
}

/* ---- The tables of Windows ---------------------------------------------------------------------------------------------- */

typedef void (*filler)(void *out, const struct row *row);

static void tcp4(void *out, const struct row *r)
{
    MIB_TCPROW_OWNER_PID row = {r->state, r->local[0], r->local_port, r->remote[0], r->remote_port, r->pid};

    memcpy(out, &row, sizeof(row));
}

static void tcp6(void *out, const struct row *r)
{
    MIB_TCP6ROW_OWNER_PID row;

    memset(&row, 0, sizeof(row));
    memcpy(row.ucLocalAddr, r->local, sizeof(r->local));
    memcpy(row.ucRemoteAddr, r->remote, sizeof(r->remote));
    row.dwLocalPort = r->local_port;
    row.dwRemotePort = r->remote_port;
    row.dwState = r->state;
    row.dwOwningPid = r->pid;
    memcpy(out, &row, sizeof(row));
}

static void udp4(void *out, const struct row *r)
{
    MIB_UDPROW_OWNER_PID row = {r->local[0], r->local_port, r->pid};

    memcpy(out, &row, sizeof(row));
}

static void udp6(void *out, const struct row *r)
{
    MIB_UDP6ROW_OWNER_PID row;

    memset(&row, 0, sizeof(row));
    memcpy(row.ucLocalAddr, r->local, sizeof(r->local));
    row.dwLocalPort = r->local_port;
    row.dwOwningPid = r->pid;
    memcpy(out, &row, sizeof(row));
}

/* fill writes a table: the number of rows, and the rows, which have no padding before them. */
static DWORD fill(PVOID table, PDWORD size, const struct rows *rows, size_t row_size, filler write_row)
{
    enum { MORE = 16 }; /* room for rows added until the caller asks again */
    size_t needed = sizeof(DWORD) + rows->count * row_size, i;
    DWORD count = (DWORD)rows->count;

    if (table == NULL || *size < needed) {
        *size = (DWORD)(needed + MORE * row_size);
        return ERROR_INSUFFICIENT_BUFFER;
    }
    memcpy(table, &count, sizeof(count));
    for (i = 0; i < rows->count; i++)
        write_row((char *)table + sizeof(DWORD) + i * row_size, rows->list + i);
    *size = (DWORD)needed;
    return NO_ERROR;
}

/* select_rows keeps either the listening TCP sockets or the others. */
static void select_rows(struct rows *rows, TCP_TABLE_CLASS class_)
{
    size_t i, n = 0;

    for (i = 0; i < rows->count; i++)
        if (class_ == TCP_TABLE_OWNER_PID_ALL ||
            (rows->list[i].state == MIB_TCP_STATE_LISTEN) == (class_ == TCP_TABLE_OWNER_PID_LISTENER))
            rows->list[n++] = rows->list[i];
    rows->count = n;
}

/* wrong returns the error of the arguments that both calls share. */
static DWORD wrong(PDWORD size, ULONG family, BOOL class_)
{
    if (size == NULL || (family != AF_INET && family != AF_INET6))
        return ERROR_INVALID_PARAMETER;
    return class_ ? NO_ERROR : ERROR_NOT_SUPPORTED;
}

DWORD GetExtendedTcpTable(PVOID table, PDWORD size, BOOL order, ULONG family, TCP_TABLE_CLASS class_, ULONG reserved)
{
    BOOL v6 = family == AF_INET6;
    struct rows rows;
    DWORD error = wrong(size, family, class_ >= TCP_TABLE_OWNER_PID_LISTENER && class_ <= TCP_TABLE_OWNER_PID_ALL);

    (void)reserved;
    if (error == NO_ERROR)
        error = collect("tcp", "tcp6", v6, order, &rows);
    if (error != NO_ERROR)
        return error;
    select_rows(&rows, class_);
    error = fill(table, size, &rows, v6 ? sizeof(MIB_TCP6ROW_OWNER_PID) : sizeof(MIB_TCPROW_OWNER_PID), v6 ? tcp6 : tcp4);
    free(rows.list);
    return error;
}

DWORD GetExtendedUdpTable(PVOID table, PDWORD size, BOOL order, ULONG family, UDP_TABLE_CLASS class_, ULONG reserved)
{
    BOOL v6 = family == AF_INET6;
    struct rows rows;
    DWORD error = wrong(size, family, class_ == UDP_TABLE_OWNER_PID);

    (void)reserved;
    if (error == NO_ERROR)
        error = collect("udp", "udp6", v6, order, &rows);
    if (error != NO_ERROR)
        return error;
    error = fill(table, size, &rows, v6 ? sizeof(MIB_UDP6ROW_OWNER_PID) : sizeof(MIB_UDPROW_OWNER_PID), v6 ? udp6 : udp4);
    free(rows.list);
    return error;
}
