package main

import "testing"

// TestTcpdumpsLanguage tries filters that users know from tcpdump.
func TestTcpdumpsLanguage(t *testing.T) {
	const here = "hint: that is tcpdump's language; the same filter here:\n  "
	for _, test := range []struct {
		name   string
		in     string
		args   []string
		status int
		out    string
		errout string
	}{
		{name: "converted", args: []string{"from-tcpdump", "tcp port 80 and not host 192.0.2.1"},
			out: "(tcp.SrcPort == 80 or tcp.DstPort == 80) and not (ip.SrcAddr == 192.0.2.1 or ip.DstAddr == 192.0.2.1)\n"},
		{name: "from input, with a note", in: "tcp[13] & 2 != 0\n", args: []string{"from-tcpdump"}, out: "tcp.Syn\n",
			errout: "note: tcpdump reads tcp[…] in IPv4 packets only; the filter matches IPv6 too.\n"},
		{name: "no counterpart", args: []string{"from-tcpdump", "icmp and vlan 7"}, status: exitUsage, errout: `
divert: the filter has no counterpart:
  icmp and vlan 7
           ^^^^^^
handles see packets behind the VLAN header; choose the VLAN's interface by ifIdx
`},
		{name: "no filter of tcpdump", args: []string{"from-tcpdump", "tcp port"}, status: exitUsage, errout: `
divert: this is no filter of tcpdump:
  tcp port
          ^
a value was expected
`},
		{name: "hint", args: []string{"check", "udp port 53"}, status: exitUsage, errout: `
divert: the filter does not compile:
  udp port 53
      ^^^^
unknown word "port"
` + here + "udp.SrcPort == 53 or udp.DstPort == 53\n"},
		{name: "hint for a part", args: []string{"check", "tcp and host example.com"}, status: exitUsage, errout: `
divert: the filter does not compile:
  tcp and host example.com
          ^^^^
unknown word "host"
hint: that is tcpdump's language; "host example.com" has no counterpart here: filters know addresses, not names of hosts; look the name up first
`},
		{name: "our own language", args: []string{"check", "tcp.DstPort 80"}, status: exitUsage, errout: `
divert: the filter does not compile:
  tcp.DstPort 80
              ^^
unexpected "80", "and", "or" or the end was expected
hint: is an operator missing? tcp.DstPort == 80
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := runCommand(t, test.in, append([]string{"filter"}, test.args...)...)
			want := test.errout
			if len(want) > 0 && want[0] == '\n' {
				want = want[1:]
			}
			if r.status != test.status || r.out != test.out || r.errout != want {
				t.Errorf("status %d\n%s%s", r.status, r.out, r.errout)
			}
		})
	}
}
