package client

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
)

// DropPrinter returns a function that prints a drop on one line.
func DropPrinter(out io.Writer, f Format) func(*agentapi.Drop) error {
	if f == JSON {
		return func(d *agentapi.Drop) error { return excerpt.WriteJSON(out, "", d) }
	}
	return func(d *agentapi.Drop) error {
		_, err := fmt.Fprintln(out, agentapi.OneLine(dropLine(d)))
		return err
	}
}

// dropLine returns the drop as text. Names in it may have control characters, so pass it through agentapi.OneLine
// before printing.
func dropLine(d *agentapi.Drop) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %5dx  ", d.Time.Local().Format("2006-01-02 15:04:05.000"), d.Count)
	node := ""
	if d.Node != "" {
		node = "; node " + d.Node
	}
	switch d.Kind {
	case agentapi.DropLost:
		return b.String() + "LOST: the agent read too slowly, so only the number of these packets is known" + node
	case agentapi.DropMissed:
		return b.String() + "MISSED: this command read too slowly, so only the number of these packets is known" + node
	}
	if d.Direction != "" {
		fmt.Fprintf(&b, "%-7s  ", d.Direction)
	}
	source, destination := d.Source.String(), d.Destination.String()
	if d.Reason == agentapi.ByAudit {
		b.WriteString("WOULD DROP: ")
	}
	switch {
	case d.Kind != agentapi.DropMore && destination == "": // the packet is neither IP nor ARP
		b.WriteString(source)
	case d.Kind != agentapi.DropMore:
		fmt.Fprintf(&b, "%s -> %s %s", source, destination, strings.TrimSpace(d.Protocol+" "+d.ICMP))
	case source == "" && destination == "":
		b.WriteString("MORE: from and to many addresses")
	case source == "":
		fmt.Fprintf(&b, "MORE: to %s, from many addresses or to many ports", destination)
	case destination == "":
		fmt.Fprintf(&b, "MORE: from %s, to many addresses or ports", source)
	default:
		fmt.Fprintf(&b, "MORE: from %s to %s, to many ports", source, destination)
	}
	fmt.Fprintf(&b, ": %s%s", why(d), node)
	return b.String()
}

func why(d *agentapi.Drop) string {
	switch d.Reason {
	case agentapi.ByAudit:
		return "it passed; audited by " + excerpt.List(d.Policies, ", ")
	case agentapi.ByPolicy:
		policies := excerpt.List(d.Policies, ", ")
		if policies == "" {
			policies = "policies that the agent doesn't know any more"
		}
		return "isolated by " + policies + "; class " + d.Chain
	}
	means := agentapi.ReasonMeans(d.Reason)
	if d.Detail != "" {
		means += " (" + d.Detail + ")"
	}
	return means
}

// PcapWriter writes drops to a file for tcpdump and Wireshark. The file has the format that "tcpdump -i nflog:88 -w
// FILE" writes (LINKTYPE_NFLOG: https://www.tcpdump.org/linktypes/LINKTYPE_NFLOG.html).
type PcapWriter struct{ out io.Writer }

const (
	linkTypeNFLOG = 239
	snapLength    = 65535
	attrPayload   = 9  // NFULA_PAYLOAD
	attrPrefix    = 10 // NFULA_PREFIX
	familyIPv4    = 2  // AF_INET on every system that has NFLOG
	familyIPv6    = 10
)

// NewPcapWriter writes the file's header.
func NewPcapWriter(out io.Writer) (*PcapWriter, error) {
	head := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	head = binary.LittleEndian.AppendUint16(head, 2) // the format's version is 2.4
	head = binary.LittleEndian.AppendUint16(head, 4)
	head = binary.LittleEndian.AppendUint64(head, 0) // the times are in UTC
	head = binary.LittleEndian.AppendUint32(head, snapLength)
	head = binary.LittleEndian.AppendUint32(head, linkTypeNFLOG)
	_, err := out.Write(head)
	return &PcapWriter{out}, err
}

// Write writes the drop's first packet. It writes nothing if the drop has no packet, or if the packet isn't IP or is
// too large.
func (w *PcapWriter) Write(d *agentapi.Drop) error {
	if len(d.Packet) == 0 || len(d.Packet) > snapLength/2 {
		return nil
	}
	var family byte
	switch d.Packet[0] >> 4 {
	case 4:
		family = familyIPv4
	case 6:
		family = familyIPv6
	default:
		return nil
	}
	data := []byte{family, 0, 0, 88}
	data = attribute(data, attrPrefix, append([]byte(logPrefix(d)), 0))
	data = attribute(data, attrPayload, d.Packet)
	micros := d.Time.UnixMicro()
	record := binary.LittleEndian.AppendUint32(nil, uint32(micros/1e6))
	record = binary.LittleEndian.AppendUint32(record, uint32(micros%1e6))
	record = binary.LittleEndian.AppendUint32(record, uint32(len(data)))
	record = binary.LittleEndian.AppendUint32(record, uint32(len(data)))
	_, err := w.out.Write(append(record, data...))
	return err
}

// logPrefix returns the log prefix of the rule that dropped the packet. For a rule of the guard (package bridge) or
// the gate (package overlay), it returns only the beginning of the prefix.
func logPrefix(d *agentapi.Drop) string {
	if d.Reason == agentapi.ByAudit {
		return conf.AuditLogPrefix + d.Chain
	}
	return conf.LogPrefix + d.Chain
}

func attribute(to []byte, kind uint16, value []byte) []byte {
	to = binary.LittleEndian.AppendUint16(to, uint16(4+len(value)))
	to = binary.LittleEndian.AppendUint16(to, kind)
	to = append(to, value...)
	for len(to)%4 != 0 {
		to = append(to, 0)
	}
	return to
}
