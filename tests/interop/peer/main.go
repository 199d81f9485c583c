// A yamux peer for trionet's tests: hashicorp/yamux behind a little command language.
//
// It listens or connects, takes either role, and does on each stream it accepts what the stream's
// first line says:
//
//	echo          send back what comes, then end
//	sink          read to the end, then send the number of bytes and end
//	source N      send N bytes of the pattern, then end
//	early         say "bye" and end; whatever comes is left unread
//	watch         read until an error and print it
//	write         write until an error and print it
//	goaway        tell the session to go away, then echo
//	open N SIZE   open N streams, send SIZE bytes on each, and check the echo of each
//	hangup        close the whole connection
//
// Results go to standard output, one line each.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"io/ioutil"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

var (
	listen   = flag.String("listen", "", "address to listen on")
	connect  = flag.String("connect", "", "address to connect to")
	role     = flag.String("role", "server", "client or server")
	cert     = flag.String("cert", "", "PEM file of certificate and key: TLS server")
	trust    = flag.String("trust", "", "PEM file of an authority: TLS client")
	window   = flag.Uint("window", 256*1024, "receive window of a stream")
	backlog  = flag.Int("backlog", 256, "accept backlog")
	noAccept = flag.Bool("noaccept", false, "accept no stream")
	bench    = flag.Int("bench", 0, "as a client: measure so many round trips and leave")
	out      sync.Mutex
)

func say(format string, arguments ...interface{}) {
	out.Lock()
	defer out.Unlock()
	fmt.Printf(format+"\n", arguments...)
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

// pattern fills data with the bytes that belong at offset at.
func pattern(data []byte, at int) {
	for i := range data {
		data[i] = byte((at + i) % 251)
	}
}

func connection() net.Conn {
	if *listen != "" {
		listener, err := net.Listen("tcp", *listen)
		fatal(err)
		say("LISTEN %s", listener.Addr())
		conn, err := listener.Accept()
		fatal(err)
		if *cert == "" {
			return conn
		}
		pair, err := tls.LoadX509KeyPair(*cert, *cert)
		fatal(err)
		return tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}})
	}
	conn, err := net.Dial("tcp", *connect)
	fatal(err)
	if *trust == "" {
		return conn
	}
	pem, err := ioutil.ReadFile(*trust)
	fatal(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: "localhost"})
}

func main() {
	flag.Parse()
	config := yamux.DefaultConfig()
	config.MaxStreamWindowSize = uint32(*window)
	config.AcceptBacklog = *backlog
	config.LogOutput = os.Stderr
	conn := connection()
	var session *yamux.Session
	var err error
	if *role == "client" {
		session, err = yamux.Client(conn, config)
	} else {
		session, err = yamux.Server(conn, config)
	}
	fatal(err)
	if *bench > 0 {
		measure(session, *bench)
		session.Close()
		return
	}
	if *noAccept {
		<-session.CloseChan()
		say("END")
		return
	}
	var streams sync.WaitGroup
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			break
		}
		streams.Add(1)
		go func() {
			defer streams.Done()
			serve(session, stream)
		}()
	}
	streams.Wait()
	say("END")
}

func serve(session *yamux.Session, stream *yamux.Stream) {
	reader := bufio.NewReaderSize(stream, 65536)
	line, err := reader.ReadString('\n')
	if err != nil {
		say("RESULT %d no command: %v", stream.StreamID(), err)
		stream.Close()
		return
	}
	words := strings.Fields(line)
	number, size := 0, 0
	if len(words) > 1 {
		fmt.Sscan(words[1], &number)
	}
	if len(words) > 2 {
		fmt.Sscan(words[2], &size)
	}
	switch words[0] {
	case "echo":
		io.Copy(stream, reader)
		stream.Close()
	case "sink":
		count, err := io.Copy(ioutil.Discard, reader)
		fmt.Fprintf(stream, "%d %v", count, err)
		stream.Close()
	case "source":
		data := make([]byte, 65536)
		for sent := 0; sent < number; {
			piece := data
			if number-sent < len(piece) {
				piece = piece[:number-sent]
			}
			pattern(piece, sent)
			if _, err := stream.Write(piece); err != nil {
				say("RESULT %d source: %v", stream.StreamID(), err)
				return
			}
			sent += len(piece)
		}
		stream.Close()
	case "early":
		stream.Write([]byte("bye"))
		stream.Close()
		say("RESULT %d early", stream.StreamID())
	case "watch":
		count, err := io.Copy(ioutil.Discard, reader)
		say("RESULT %d watch: %d %v", stream.StreamID(), count, err)
	case "write":
		data := make([]byte, 65536)
		for {
			if _, err := stream.Write(data); err != nil {
				say("RESULT %d write: %v", stream.StreamID(), err)
				return
			}
		}
	case "goaway":
		session.GoAway()
		io.Copy(stream, reader)
		stream.Close()
	case "open":
		err := open(session, number, size)
		fmt.Fprintf(stream, "%v", err)
		stream.Close()
	case "hangup":
		session.Close()
	}
}

func open(session *yamux.Session, number, size int) error {
	results := make(chan error, number)
	for i := 0; i < number; i++ {
		go func() { results <- echoed(session, size) }()
	}
	for i := 0; i < number; i++ {
		if err := <-results; err != nil {
			return err
		}
	}
	return nil
}

func echoed(session *yamux.Session, size int) error {
	stream, err := session.OpenStream()
	if err != nil {
		return err
	}
	sent, got := make([]byte, size), make([]byte, size)
	pattern(sent, 0)
	failed := make(chan error, 1)
	go func() {
		_, err := stream.Write(sent)
		failed <- err
	}()
	if _, err := io.ReadFull(stream, got); err != nil {
		return err
	}
	for i := range got {
		if got[i] != sent[i] {
			return fmt.Errorf("byte %d differs", i)
		}
	}
	if err := <-failed; err != nil {
		return err
	}
	// Only now: older versions of the library read nothing after their own Close.
	return stream.Close()
}

// measure prints what trionet's benchmark prints of itself: 64 B round trips, and bulk echoed.
func measure(session *yamux.Session, rounds int) {
	stream, err := session.OpenStream()
	fatal(err)
	stream.Write([]byte("echo\n"))
	message := make([]byte, 64)
	begin := time.Now()
	for i := 0; i < rounds; i++ {
		stream.Write(message)
		_, err := io.ReadFull(stream, message)
		fatal(err)
	}
	say("PINGPONG %.3f", time.Since(begin).Seconds()/float64(rounds)*1e6)
	const total = 64 << 20
	go func() {
		data := make([]byte, 65536)
		for sent := 0; sent < total; sent += len(data) {
			stream.Write(data)
		}
		stream.Close()
	}()
	begin = time.Now()
	count, _ := io.Copy(ioutil.Discard, stream)
	say("BULK %.1f", float64(count)/1e6/time.Since(begin).Seconds())
}
