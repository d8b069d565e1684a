// A picture to click and draw on. Marks are kept here by picture, as vectors in pixels of the uploaded picture; all
// of them are sent to the server, which answers with the picture and the mask over it.
// element, props, trigger and watch are given by gradio.
const find = selector => element.querySelector(selector)
const root = find('.dv-canvas'), stage = find('.dv-stage'), image = find('img'), canvas = find('canvas')
const context = canvas.getContext('2d')
const marks = {}                   // picture -> actions in order
let tool = 'click', negative = false, brush = 16  // brush: radius in pixels of the screen
let drawnMarks = 0                 // actions that the shown picture has in it already
let sending = null
let stroke = null, pressed = null, pointer = null, cross = null

const current = () => (props.picture && (marks[props.picture] ??= [])) || []
const scale = () => props.size[0] / canvas.clientWidth  // pixels of the picture for one of the screen
const rounded = number => Math.round(number * 100) / 100

function place(event) {
    const box = canvas.getBoundingClientRect()
    return [(event.clientX - box.left) / box.width * props.size[0], (event.clientY - box.top) / box.height * props.size[1]]
}

// Once for all actions of a moment: answers to several requests may arrive in another order.
function send() {
    draw()
    sending ??= setTimeout(() => {
        sending = null
        props.value = JSON.stringify(Object.fromEntries(Object.entries(marks).filter(([, actions]) => actions.length)))
        trigger('input')
    }, 10)
}

function add(action) {
    if (!props.picture) return
    current().push(action)
    send()
}

function addPoint([x, y], background) {
    const [width, height] = props.size
    if (x < 0 || y < 0 || x > width || y > height) return
    add({kind: 'point', x: rounded(x), y: rounded(y), label: background ? 0 : 1})
}

function shorten(count) {
    const actions = current()
    if (!actions.length) return
    actions.length = Math.max(0, count)
    drawnMarks = Math.min(drawnMarks, actions.length)
    send()
}

// Drawing

function draw() {
    const width = canvas.clientWidth, height = canvas.clientHeight
    if (!width || !props.picture) return  // a hidden tab; the observer calls again when it is shown
    const dense = window.devicePixelRatio || 1
    if (canvas.width !== Math.round(width * dense) || canvas.height !== Math.round(height * dense)) {
        canvas.width = Math.round(width * dense)
        canvas.height = Math.round(height * dense)
    }
    context.setTransform(dense, 0, 0, dense, 0, 0)
    context.clearRect(0, 0, width, height)
    const actions = current()
    for (const action of actions.slice(drawnMarks)) if (action.kind === 'stroke') drawStroke(action)
    if (stroke) drawStroke(stroke)
    for (const action of actions) if (action.kind === 'point') drawPoint(action)
    if (cross) drawCross()
    if (pointer && tool === 'draw') drawRing()
    const buttons = {undo: actions.length, clear: actions.length}
    for (const [name, on] of Object.entries(buttons)) find(`[data-do=${name}]`).disabled = !on
}

function drawStroke({points, radius, erase}) {
    context.globalAlpha = 0.5
    context.strokeStyle = erase ? '#ef4444' : '#1e90ff'
    context.lineWidth = 2 * radius / scale()
    context.lineCap = context.lineJoin = 'round'
    context.beginPath()
    const [first, ...rest] = points.map(([x, y]) => [x / scale(), y / scale()])
    context.moveTo(...first)
    for (const point of rest.length ? rest : [first]) context.lineTo(...point)
    context.stroke()
    context.globalAlpha = 1
}

function drawPoint({x, y, label}) {
    const at = [x / scale(), y / scale()], arm = 4
    context.beginPath()
    context.arc(...at, 8, 0, 2 * Math.PI)
    context.fillStyle = label ? '#15803d' : '#dc2626'
    context.fill()
    context.lineWidth = 2
    context.strokeStyle = 'white'
    context.stroke()
    line([at[0] - arm, at[1]], [at[0] + arm, at[1]])
    if (label) line([at[0], at[1] - arm], [at[0], at[1] + arm])
}

function drawCross() {
    const [x, y] = [cross[0] / scale(), cross[1] / scale()]
    for (const [colour, width] of [['black', 3], ['white', 1]]) {
        context.strokeStyle = colour
        context.lineWidth = width
        line([x - 14, y], [x + 14, y])
        line([x, y - 14], [x, y + 14])
    }
}

function drawRing() {
    for (const [colour, width] of [['rgba(0,0,0,.7)', 3], [negative ? '#fca5a5' : 'white', 1.2]]) {
        context.beginPath()
        context.arc(pointer[0] / scale(), pointer[1] / scale(), brush, 0, 2 * Math.PI)
        context.lineWidth = width
        context.strokeStyle = colour
        context.stroke()
    }
}

function line(from, to) {
    context.beginPath()
    context.moveTo(...from)
    context.lineTo(...to)
    context.stroke()
}

function show() {
    for (const button of element.querySelectorAll('button[data-tool]'))
        button.setAttribute('aria-pressed', button.dataset.tool === tool)
    for (const button of element.querySelectorAll('button[data-sign]'))
        button.setAttribute('aria-pressed', (button.dataset.sign === 'minus') === negative)
    root.dataset.tool = tool
    find('input[type=range]').value = brush
    draw()
}

function refresh() {
    root.classList.toggle('dv-empty', !props.picture)
    root.dataset.picture = props.picture
    if (!props.picture || !props.image) return draw()
    stage.style.setProperty('--ratio', props.size[0] / props.size[1])
    const url = `${window.gradio_config?.root ?? ''}/gradio_api/file=${props.image}`
    if (image.getAttribute('src') !== url) image.src = url
    drawnMarks = Math.min(props.drawn_marks ?? 0, current().length)
    draw()
}

function take() {
    Object.assign(marks, JSON.parse(props.preset).marks)
    send()
}

// Events

canvas.addEventListener('pointerdown', event => {
    if (!props.picture || event.button === 1) return
    canvas.focus({preventScroll: true})
    cross = null
    const background = negative !== (event.button === 2 || event.shiftKey)
    pressed = {at: [event.clientX, event.clientY], background}
    if (tool === 'draw') {
        canvas.setPointerCapture(event.pointerId)
        stroke = {kind: 'stroke', points: [place(event).map(rounded)], radius: rounded(brush * scale()), erase: background}
        draw()
    }
})

canvas.addEventListener('pointermove', event => {
    pointer = place(event)
    if (stroke) {
        const coalesced = event.getCoalescedEvents?.() ?? []
        for (const move of coalesced.length ? coalesced : [event]) {
            const point = place(move).map(rounded), last = stroke.points.at(-1)
            // Moves of less than half a screen pixel are noise that would only enlarge the payload.
            if (Math.hypot(point[0] - last[0], point[1] - last[1]) >= scale() / 2) stroke.points.push(point)
        }
    }
    if (tool === 'draw') draw()
})

canvas.addEventListener('pointerup', event => {
    const done = stroke, began = pressed
    stroke = pressed = null
    if (done) add(done)
    else if (began && Math.hypot(event.clientX - began.at[0], event.clientY - began.at[1]) < 6)
        addPoint(place(event), began.background)
})

canvas.addEventListener('pointercancel', () => { stroke = pressed = null; draw() })
canvas.addEventListener('pointerleave', () => { pointer = null; draw() })
canvas.addEventListener('contextmenu', event => event.preventDefault())
canvas.addEventListener('blur', () => { cross = null; draw() })

canvas.addEventListener('keydown', event => {
    const key = event.key.toLowerCase()
    const step = {arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1]}[key]
    if (key === 'z' && (event.ctrlKey || event.metaKey)) shorten(current().length - 1)
    else if (event.ctrlKey || event.metaKey || event.altKey) return
    else if (step && props.picture) {
        const far = Math.max(...props.size) * (event.shiftKey ? 0.05 : 0.01)
        cross ??= props.size.map(side => side / 2)
        cross = cross.map((at, i) => Math.min(Math.max(at + step[i] * far, 0), props.size[i]))
        draw()
    } else if ((key === 'enter' || key === ' ') && cross) addPoint(cross, negative !== event.shiftKey)
    else if (key === 'escape' && (stroke || cross)) { stroke = pressed = cross = null; draw() }
    else if (key === 'p') { tool = 'click'; show() }
    else if (key === 'b') { tool = 'draw'; negative = false; show() }
    else if (key === 'e') { tool = 'draw'; negative = true; show() }
    else if (key === 'x') { negative = !negative; show() }
    else if (key === '[') { brush = Math.max(2, brush - 2); show() }
    else if (key === ']') { brush = Math.min(80, brush + 2); show() }
    else return
    event.preventDefault()
})

element.addEventListener('click', event => {
    const button = event.target.closest('button')
    if (!button) return
    const {tool: chosen, sign, do: act} = button.dataset
    if (chosen) tool = chosen
    if (sign) negative = sign === 'minus'
    if (act === 'undo') shorten(current().length - 1)
    if (act === 'clear') shorten(0)
    if (act === 'full') document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen()
    show()
})

find('input[type=range]').addEventListener('input', event => { brush = Number(event.target.value); draw() })
new ResizeObserver(draw).observe(canvas)
watch(['image', 'picture', 'size', 'drawn_marks'], refresh)
watch('preset', take)
refresh()
show()
