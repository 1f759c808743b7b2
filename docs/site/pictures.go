package main

import (
	"strings"

	_ "embed"
)

// pathPicture shows the paths of packets through a host, and the places of handles.
func pathPicture() ([]byte, error) {
	d := newDrawing(760, 400)
	d.box("own", 230, 20, 300, 56, "your program", "receives, decides, sends on, or drops")
	d.text("faint", 748, 106, "end", "user space")
	d.b.WriteString("<path class=\"line dashed\" d=\"M12 116H748\"/>\n")
	d.text("faint", 748, 134, "end", "kernel")
	for _, hook := range []struct {
		x, y        int
		name, where string
	}{
		{100, 290, "NETWORK, inbound", "PRE_ROUTING"}, {510, 290, "NETWORK, outbound", "POST_ROUTING"}, {305, 290, "FORWARD", "FORWARD"},
	} {
		d.box("own", hook.x, hook.y, 150, 50, hook.name, hook.where)
	}
	d.box("box", 280, 170, 200, 44, "sockets of this host", "SOCKET and FLOW see these")
	d.text("", 40, 320, "middle", "network")
	d.text("", 722, 320, "middle", "network")
	d.arrow("line", 68, 315, 100, 315)
	d.arrow("line", 250, 315, 305, 315)
	d.arrow("line", 455, 315, 510, 315)
	d.arrow("line", 660, 315, 694, 315)
	d.arrow("line", 264, 315, 264, 192, 280, 192)
	d.arrow("line", 480, 192, 496, 192, 496, 308, 510, 308)
	// Up to the program and down again, at each hook.
	d.arrow("way", 150, 290, 150, 60, 230, 60)
	d.arrow("way", 230, 40, 120, 40, 120, 290)
	d.arrow("way", 610, 290, 610, 60, 530, 60)
	d.arrow("way", 530, 40, 640, 40, 640, 290)
	d.text("faint", 160, 160, "start", "matches: up")
	d.text("faint", 112, 160, "end", "sent on: down")
	d.text("faint", 600, 160, "end", "matches: up")
	d.text("faint", 648, 160, "start", "sent on: down")
	d.text("", 380, 375, "middle", "What matches no filter takes the grey way and never leaves the kernel. FORWARD does the same.")
	return d.svg("picture-path", "The path of a packet through a host"), nil
}

// priorityPicture shows the path of one packet through several handles.
func priorityPicture() ([]byte, error) {
	d := newDrawing(760, 230)
	for i, handle := range []struct{ priority, does string }{
		{"priority 100", "sniffs: gets a copy"}, {"priority 0", "sends a changed packet on"}, {"priority −100", "sees the changed packet"},
	} {
		x := 90 + i*212
		d.box("own", x, 90, 186, 56, handle.priority, handle.does)
		if i > 0 {
			d.arrow("line", x-26, 118, x, 118)
		}
	}
	d.text("", 36, 123, "middle", "packet")
	d.arrow("line", 62, 118, 90, 118)
	d.arrow("line", 700, 118, 722, 118)
	d.text("", 738, 123, "middle", "on")
	d.arrow("way", 395, 90, 395, 50, 640, 50, 640, 90)
	d.text("faint", 518, 40, "middle", "a packet that a handle sends meets the lower ones only")
	d.arrow("way dashed", 183, 146, 183, 186)
	d.text("faint", 183, 206, "middle", "the copy")
	d.arrow("line dashed", 607, 146, 607, 186)
	d.text("faint", 605, 206, "middle", "dropped here, it ends")
	return d.svg("picture-priorities", "A packet meets the handles from the highest priority to the lowest"), nil
}

// session is the recorded terminal output of divert in the lab.
//
//go:embed session.txt
var session string

// terminalPicture shows the session.
func terminalPicture() ([]byte, error) {
	lines := strings.Split(strings.TrimSuffix(session, "\n"), "\n")
	longest := 0
	for _, line := range lines {
		longest = max(longest, len([]rune(line)))
	}
	d := newDrawing(longest*8+40, len(lines)*19+30)
	d.b.WriteString("<rect class=\"screen\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n<g font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\">\n")
	for i, line := range lines {
		class := "shown"
		if strings.HasPrefix(line, "$ ") {
			class = "typed"
		}
		d.text(class, 20, 31+19*i, "start", strings.ReplaceAll(line, " ", "\u00a0"))
	}
	d.b.WriteString("</g>\n")
	return d.svg("picture-terminal", "divert at work in its lab, on a terminal"), nil
}
