package nftables

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// String returns the table as nft prints it.
//
// Equivalent to: nft --stateless list table FAMILY weir
func (t *table) String() string {
	var b strings.Builder
	ip := (&statement{family: t.family}).ip()
	fmt.Fprintf(&b, "table %s %s {\n\tcomment %q\n", ip, tableName, nftnl.WeirTableComment)
	for _, s := range t.sets {
		s.print(&b, t.family)
		b.WriteString("\n")
	}
	for i, c := range t.chains {
		if i > 0 {
			b.WriteString("\n")
		}
		c.print(&b, t.family)
	}
	b.WriteString("}\n")
	return b.String()
}

func (s set) print(b *strings.Builder, f conf.Family) {
	word := "set"
	if s.Layout == nftnl.Verdicts {
		word = "map"
	}
	fmt.Fprintf(b, "\t%s %s {\n\t\t%s\n", word, s.Name, s.typeText(f))
	if s.Layout == nftnl.Network {
		b.WriteString("\t\tflags interval\n")
	}
	if s.Comment != "" {
		fmt.Fprintf(b, "\t\tcomment %q\n", s.Comment)
	}
	var all []string
	for e := range s.entries.All() {
		all = append(all, s.elementText(s.elementOf(e)))
	}
	if len(all) > 0 {
		fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(all, ",\n\t\t\t     "))
	}
	b.WriteString("\t}\n")
}

func (s set) typeText(f conf.Family) string {
	word := "type "
	if s.Layout == nftnl.InnerPair { // nft has no name for the type of a part of a header
		word = "typeof "
	}
	elements, _, _ := strings.Cut(s.Layout.In(f), ", ") // the method print adds the flags
	return word + elements
}

func (s set) elementText(e nftnl.Element) string {
	var key string
	address := e.Prefix.Addr().String()
	switch s.Layout {
	case nftnl.Network:
		if key = e.Prefix.String(); e.Prefix.IsSingleIP() {
			key = address
		}
	case nftnl.AddressPort:
		key = fmt.Sprintf("%s . %s . %d", address, protocolOf(e.Proto), e.Port)
	case nftnl.AddressLink:
		key = fmt.Sprintf("%s . %q", address, e.Link)
	case nftnl.Link:
		key = fmt.Sprintf("%q", e.Link)
	case nftnl.Port:
		key = fmt.Sprint(e.Port)
	case nftnl.AddressPair:
		key = address + " . " + address
	case nftnl.InnerPair:
		key = fmt.Sprintf("%s . 0x%x", address, e.Prefix.Addr().AsSlice())
		key = strings.Replace(key, " 0x0", " 0x", 1)
	default:
		key = address
	}
	if e.Comment != "" {
		key += fmt.Sprintf(" comment %q", e.Comment)
	}
	if s.Layout == nftnl.Verdicts {
		verdict := "return"
		if e.Verdict.Code == unix.NFT_GOTO {
			verdict = "goto " + e.Verdict.Chain
		}
		key += " : " + verdict
	}
	return key
}

var hookText = map[ruleset.Hook]string{
	ruleset.CheckForwarded:  "type filter hook forward priority -150; policy accept;",
	ruleset.CheckToNode:     "type filter hook input priority -150; policy accept;",
	ruleset.TranslateSource: "type nat hook postrouting priority srcnat + 1; policy accept;",
}

func (c chain) print(b *strings.Builder, f conf.Family) {
	fmt.Fprintf(b, "\tchain %s {\n", c.Name)
	if c.Comment != "" {
		fmt.Fprintf(b, "\t\tcomment %q\n", c.Comment)
	}
	for at, h := range hooks {
		if c.Hook != nil && *c.Hook == h {
			fmt.Fprintf(b, "\t\t%s\n", hookText[at])
		}
	}
	for _, r := range c.rules {
		_, text := r.write(f)
		fmt.Fprintf(b, "\t\t%s\n", text)
	}
	b.WriteString("\t}\n")
}
