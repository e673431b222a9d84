package agent

import (
	"net"
	"slices"
	"sync"
)

// bounded keeps a limited number of connections open. For a further connection, it closes the oldest connection, so a
// client with many connections doesn't keep other clients out.
type bounded struct {
	net.Listener
	most int

	mu   sync.Mutex
	open []*boundedConn
}

type boundedConn struct {
	net.Conn
	listener *bounded
}

func (b *bounded) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &boundedConn{conn, b}
	b.mu.Lock()
	b.open = append(b.open, c)
	var oldest *boundedConn
	if len(b.open) > b.most {
		oldest = b.open[0]
	}
	b.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close() // a server that reads from the oldest connection gets an error
	}
	return c, nil
}

func (c *boundedConn) Close() error {
	c.listener.mu.Lock()
	c.listener.open = slices.DeleteFunc(c.listener.open, func(o *boundedConn) bool { return o == c })
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
