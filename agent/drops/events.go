package drops

import (
	"fmt"
	"strings"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// These limits bound the number of Event objects. Each Event object costs the API server a write, and by default the
// server keeps the object for an hour.
const (
	maxNoticed = 2048      // the number of kinds of drops that are remembered
	noticeFor  = time.Hour // how long a kind of drops is remembered after its last drop
	retell     = 5 * time.Minute
	podBurst   = 5           // how many notices one pod may get without a pause
	podEvery   = time.Minute // the time after which the pod may get one more notice
	allBurst   = 30          // how many notices all pods together may get without a pause
	allEvery   = 2 * time.Second
)

// Notice has the contents of an Event object for a pod, about drops of one kind.
type Notice struct {
	// Key is equal for drops of one kind: with the same reason, direction, protocol and destination port, between the
	// same pods or addresses.
	Key  string
	Pod  string // the pod whose policies dropped the packets, or that sent forbidden packets
	Note string
	// Count is the number of packets since First.
	Count       uint64
	First, Last time.Time
}

// Events chooses the drops that are worth an event. Within the limits above, each kind of drops gets an event at once,
// and another event with the count every five minutes while drops come. Only one goroutine may use an Events.
type Events struct {
	noticed map[string]*notice
	pods    map[string]*bucket
	all     bucket
	swept   time.Time
}

type notice struct {
	Notice
	told time.Time
}

type bucket struct {
	tokens  float64
	counted time.Time
}

func (b *bucket) take(now time.Time, burst float64, every time.Duration) bool {
	if b.counted.IsZero() {
		b.tokens = burst
	} else {
		b.tokens = min(burst, b.tokens+now.Sub(b.counted).Seconds()/every.Seconds())
	}
	b.counted = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func NewEvents() *Events { return &Events{noticed: map[string]*notice{}, pods: map[string]*bucket{}} }

// Add returns true and a notice if a notice about drops of d's kind is due now.
func (e *Events) Add(d *agentapi.Drop, now time.Time) (Notice, bool) {
	local, _ := d.Local()
	certain := local.Pod != "" && !strings.Contains(local.Pod, ",")
	if d.Kind != agentapi.DropShown || d.Reason == agentapi.ByAudit || !certain {
		return Notice{}, false
	}
	e.sweep(now)
	key := keyOf(d)
	n := e.noticed[key]
	if n != nil {
		if n.Count, n.Last = n.Count+d.Count, d.Time; now.Sub(n.told) < retell {
			return Notice{}, false
		}
	}
	of := e.pods[local.Pod]
	if of == nil {
		of = &bucket{}
		e.pods[local.Pod] = of
	}
	// Add remembers a kind of drops only if the kind gets an event. So a pod with many kinds takes no room from other
	// pods.
	if !of.take(now, podBurst, podEvery) || n == nil && len(e.noticed) >= maxNoticed ||
		!e.all.take(now, allBurst, allEvery) {
		return Notice{}, false
	}
	if n == nil {
		n = &notice{Notice: Notice{Key: key, Pod: local.Pod, Note: noteOf(d), Count: d.Count, First: d.Time, Last: d.Time}}
		e.noticed[key] = n
	}
	n.told = now
	return n.Notice, true
}

func (e *Events) sweep(now time.Time) {
	if now.Sub(e.swept) < time.Minute {
		return
	}
	e.swept = now
	for key, n := range e.noticed {
		if now.Sub(n.Last) > noticeFor {
			delete(e.noticed, key)
		}
	}
	for pod, b := range e.pods {
		if now.Sub(b.counted) > podBurst*podEvery {
			delete(e.pods, pod)
		}
	}
}

func keyOf(d *agentapi.Drop) string {
	name := func(e agentapi.DropEnd) string {
		if e.Pod != "" {
			return e.Pod
		}
		return e.Address.String()
	}
	return fmt.Sprintf("%s %s %s %s %s %d", d.Direction, d.Reason, name(d.Source), name(d.Destination), d.Protocol,
		d.Destination.Port)
}

// maxNote is the longest note that an API server accepts, in bytes.
const maxNote = 1024

func noteOf(d *agentapi.Drop) string {
	why := agentapi.ReasonMeans(d.Reason)
	if d.Reason == agentapi.ByPolicy && len(d.Policies) > 0 {
		why = "isolated by " + strings.Join(d.Policies, ", ")
	}
	source := d.Source
	source.Port = 0 // each connection has another source port
	note := agentapi.OneLine(fmt.Sprintf("dropped %s from %s to %s: %s",
		strings.TrimSpace(strings.ToUpper(d.Protocol)+" "+d.ICMP), source, d.Destination, why))
	// A shortened note may end in a part of a character. JSON would replace that part by three bytes, and the note would
	// be too long. So ToValidUTF8 removes the part.
	return strings.ToValidUTF8(note[:min(len(note), maxNote)], "")
}
