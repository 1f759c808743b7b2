package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
)

// topScreen is top on a terminal. One goroutine draws, reads the keys and opens handles; another counts packets.
type topScreen struct {
	t       *top
	s       tcell.Screen
	v       *topView
	actions *topActions
	chosen  string      // the selected row, by its rowName
	ask     func()      // the action that waits for y
	says    chan string // messages of other goroutines
	expires time.Time   // end of the status message
	ended   chan error  // of the goroutine that counts
	ctx     context.Context

	unfollow context.CancelFunc // stops updating the sets of the filter
	tick     time.Duration      // between intervals
}

// panicked is a panic in another goroutine.
type panicked struct {
	value any
	stack []byte
}

// Error returns the panic's value and stack.
func (p panicked) Error() string { return fmt.Sprintf("panic: %v\n%s", p.value, p.stack) }

// statusTime is how long a message stays on the screen.
const statusTime = 5 * time.Second

// interactive runs top on a terminal until q, ^C, a signal or the end of its time. It always restores the terminal.
func (t *top) interactive(ctx context.Context, says chan string, unfollow context.CancelFunc) error {
	s, err := t.app.newScreen()
	if err == nil {
		err = s.Init()
	}
	if err != nil {
		return fmt.Errorf("this terminal cannot be used (%w); --plain prints tables, --json objects", err)
	}
	u := &topScreen{
		t: t, s: s, v: t.view(), says: says, unfollow: unfollow, ended: make(chan error, 1), tick: t.interval,
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	u.ctx = ctx
	u.actions = newTopActions(ctx, &t.flags, u.say)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				u.ended <- panicked{p, debug.Stack()}
			}
		}()
		u.ended <- t.receive()
	}()
	return u.run(ctx)
}

// run handles keys and draws until the end. Then, even after a panic, it restores the terminal, and dropped flows pass
// again.
func (u *topScreen) run(ctx context.Context) error {
	defer u.s.Fini()
	defer u.actions.close()
	return u.loop(ctx)
}

// say shows a message. Any goroutine may call it; messages that come too fast to read are left out.
func (u *topScreen) say(text string) {
	select {
	case u.says <- text:
	default:
	}
}

// loop handles keys and draws.
func (u *topScreen) loop(ctx context.Context) error {
	events, quit := make(chan tcell.Event, 16), make(chan struct{})
	defer close(quit)
	go u.s.ChannelEvents(events, quit)
	tick := time.NewTicker(u.tick)
	defer tick.Stop()
	intervals := 0
	for {
		u.draw()
		select {
		case <-ctx.Done():
			return nil
		case err := <-u.ended:
			var p panicked
			if errors.As(err, &p) {
				panic(p)
			}
			return err
		case text := <-u.says:
			u.status(text)
		case <-tick.C:
			u.t.counter.tick(time.Now())
			u.v.lost = u.t.lost()
			if !u.v.paused {
				u.refresh()
			}
			if intervals++; intervals == u.t.flags.scope.count {
				return nil
			}
		case e, ok := <-events:
			if !ok {
				return errors.New("the terminal has disappeared")
			}
			switch e := e.(type) {
			case *tcell.EventResize:
				u.s.Sync()
			case *tcell.EventKey:
				if u.key(e) {
					return nil
				}
			}
		}
	}
}

func (u *topScreen) status(text string) {
	u.v.status, u.expires = oneLine(text), time.Now().Add(statusTime)
}

// refresh takes the rows from the counter and keeps the selection.
func (u *topScreen) refresh() {
	u.t.counter.view(u.v)
	u.v.selected = min(max(u.v.selected, 0), len(u.v.rows)-1)
	for i := range u.v.rows {
		if rowName(&u.v.rows[i]) == u.chosen {
			u.v.selected = i
			break
		}
	}
	u.scroll()
}

// rowName identifies a row within a view.
func rowName(r *topRow) string { return r.filter + "\x00" + r.name }

// scroll scrolls to the selected row.
func (u *topScreen) scroll() {
	_, height := u.s.Size()
	room := max(1, height-topHeader-topFooter)
	v := u.v
	v.first = max(0, min(v.first, len(v.rows)-room))
	if v.selected >= 0 {
		v.first = min(max(v.first, v.selected-room+1), v.selected)
	}
}

// choose selects a row.
func (u *topScreen) choose(i int) {
	v := u.v
	if v.selected = min(max(i, 0), len(v.rows)-1); v.selected >= 0 {
		u.chosen = rowName(&v.rows[v.selected])
	}
	u.scroll()
}

// draw draws the screen.
func (u *topScreen) draw() {
	if u.v.status != "" && time.Now().After(u.expires) && u.ask == nil {
		u.v.status = ""
	}
	width, height := u.s.Size()
	for y, l := range u.v.lines(width, height) {
		style := tcell.StyleDefault
		switch l.kind {
		case lineTitle, lineStatus:
			style = style.Bold(true)
		case lineHeading:
			style = style.Underline(true)
		case lineSelected:
			style = style.Reverse(true)
		}
		x := 0
		for _, r := range l.text {
			if unprintable(r) { // names are already printable; nothing else is drawn
				r = '?'
			}
			u.s.SetContent(x, y, r, nil, style)
			x++
		}
	}
	u.s.Show()
}

// key handles a key and reports whether it ends the run.
func (u *topScreen) key(e *tcell.EventKey) (end bool) {
	v := u.v
	if e.Key() == tcell.KeyCtrlC {
		return true
	}
	switch {
	case u.ask != nil:
		do := u.ask
		if u.ask, v.status = nil, ""; e.Key() == tcell.KeyRune && (e.Rune() == 'y' || e.Rune() == 'Y') {
			do()
		}
		return false
	case v.typing:
		u.edit(e)
		return false
	}
	_, height := u.s.Size()
	page := max(1, height-topHeader-topFooter)
	switch e.Key() {
	case tcell.KeyUp:
		u.choose(v.selected - 1)
	case tcell.KeyDown:
		u.choose(v.selected + 1)
	case tcell.KeyPgUp:
		u.choose(v.selected - page)
	case tcell.KeyPgDn:
		u.choose(v.selected + page)
	case tcell.KeyHome:
		u.choose(0)
	case tcell.KeyEnd:
		u.choose(len(v.rows) - 1)
	case tcell.KeyTab:
		u.show((v.by + 1) % topBy(len(topByNames)))
	case tcell.KeyEscape:
		v.help = false
	case tcell.KeyCtrlL:
		u.s.Sync()
	case tcell.KeyRune:
		return u.letter(e.Rune())
	}
	return false
}

// letter handles a letter and reports whether it ends the run.
func (u *topScreen) letter(r rune) (end bool) {
	v := u.v
	sorts := topSort(len(topSortNames))
	switch r {
	case 'q':
		return true
	case 'p':
		u.show(byProcess)
	case 'f':
		u.show(byFlow)
	case 'h':
		u.show(byHost)
	case 's':
		v.order = (v.order + 1) % sorts
		u.refresh()
	case 'S':
		v.order = (v.order + sorts - 1) % sorts
		u.refresh()
	case 'r':
		v.reverse = !v.reverse
		u.refresh()
	case ' ':
		v.paused = !v.paused
	case '?':
		v.help = !v.help
	case 'c':
		u.restart()
	case '/':
		v.typing, v.prompt = true, v.filter
	case 'd':
		u.drop()
	case 'k':
		u.reset()
	}
	return false
}

// show shows another kind of rows.
func (u *topScreen) show(by topBy) {
	u.v.by, u.v.selected, u.v.first, u.chosen, u.v.help = by, 0, 0, "", false
	u.refresh()
}

// edit handles a key while the user types a filter.
func (u *topScreen) edit(e *tcell.EventKey) {
	v := u.v
	switch e.Key() {
	case tcell.KeyEscape:
		v.typing = false
	case tcell.KeyEnter:
		v.typing = false
		u.setFilter(v.prompt)
	case tcell.KeyBackspace, tcell.KeyBackspace2:
		if len(v.prompt) > 0 {
			v.prompt = v.prompt[:len(v.prompt)-1]
		}
	case tcell.KeyCtrlU:
		v.prompt = ""
	case tcell.KeyRune:
		if r := e.Rune(); r >= ' ' && r <= '~' && len(v.prompt) < maxTypedFilter { // all characters of filters
			v.prompt += string(r)
		}
	}
}

// maxTypedFilter limits the length of a typed filter.
const maxTypedFilter = 4096

// setFilter sets another filter and restarts the counters. If the filter is wrong the old one stays.
func (u *topScreen) setFilter(typed string) {
	text := filterText([]string{typed})
	u.t.flags.sets.files = nil // they belong to the old filter
	_, p, err := u.t.flags.program([]string{text})
	following, unfollow := context.WithCancel(u.ctx)
	if err == nil {
		err = u.t.flags.follow(following, p, &u.t.report)
	}
	if err == nil {
		err = u.t.h.SetProgram(p)
	}
	if err != nil {
		unfollow()
	} else {
		u.unfollow()
		u.unfollow = unfollow
	}
	var f *filter.Error
	switch {
	case errors.As(err, &f):
		hint := ""
		if f.Hint != "" {
			hint = " (" + f.Hint + ")"
		}
		u.status(fmt.Sprintf("wrong filter, column %d: %s%s", f.Pos+1, f.Msg, hint))
	case err != nil:
		var op *divert.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		u.status("the filter stays: " + plain(err))
	default:
		u.v.filter, u.t.text, u.v.status = text, text, ""
		u.restart()
	}
}

// restart resets the counters.
func (u *topScreen) restart() {
	u.t.before.Add(u.t.lost())
	u.v.lost = 0
	u.t.counter.clear(time.Now())
	u.refresh()
}

// row returns the selected row, or nil and a message if it allows no action.
func (u *topScreen) row() *topRow {
	v := u.v
	switch {
	case v.selected < 0 || v.selected >= len(v.rows):
		u.status("there is no row")
	case v.rows[v.selected].filter == "":
		u.status("no filter matches the packets of this row: choose a flow")
	default:
		return &v.rows[v.selected]
	}
	return nil
}

// drop drops the packets of the selected row, or lets them pass again.
func (u *topScreen) drop() {
	r := u.row()
	if r == nil {
		return
	}
	f := r.filter
	do := func() {
		dropping, err := u.actions.toggle(f)
		switch {
		case err != nil:
			u.status("dropping failed: " + plain(err))
		case dropping:
			u.v.marks[f] = 'D'
			u.status("dropping " + f)
		default:
			delete(u.v.marks, f)
			u.status("no longer dropping " + f)
		}
	}
	if u.actions.dropped[f] {
		do()
		return
	}
	u.question("drop packets that match "+f, do)
}

// reset resets the connections of the selected row.
func (u *topScreen) reset() {
	r := u.row()
	switch {
	case r == nil:
		return
	case !r.tcp:
		u.status("only connections of TCP can be reset; d drops")
		return
	}
	f := r.filter
	u.question("reset TCP connections that match "+f, func() {
		if err := u.actions.reset(f); err != nil {
			u.status("resetting failed: " + plain(err))
			return
		}
		u.status("their next packets become resets")
	})
}

// question asks for confirmation before an action.
func (u *topScreen) question(what string, do func()) {
	u.ask = do
	u.status(what + "? y/n")
}

// statusWriter shows the run's messages on the screen.
type statusWriter struct{ says chan<- string }

// Write shows lines.
func (w statusWriter) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		select {
		case w.says <- strings.TrimSuffix(line, "\n"):
		default: // messages come too fast to read
		}
	}
	return len(b), nil
}
